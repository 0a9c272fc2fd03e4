"""Anybody's data as examples: arrays, tensors, data sets and loaders of torch; and what their labels are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import DataError
from hesplit_native.training.metrics import Kind
from hesplit_native.training.task import Examples, Inputs, TensorExamples, each

_ROWS = 4096  # looked at together


@dataclass(frozen=True)
class Labels:
    """What labels are: their kind, and how many outputs a network needs for them (0: they do not say)."""

    kind: Kind
    outputs: int


@dataclass(frozen=True)
class LoadedExamples:
    """Rows of a map-style data set, put together by a `DataLoader`. `labelled` is what is expected of the labels."""

    dataset: Any
    name: str
    options: dict[str, Any]
    labelled: Labels | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.dataset)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Inputs, Tensor]]:
        """As `Examples`. Where workers load, their random numbers are the same in every epoch."""
        chosen = [part.tolist() for part in parts]
        # The loader draws from this generator, and not from the process's, which a run that resumes must find as it was.
        loader: Any = DataLoader(
            self.dataset, batch_sampler=chosen, generator=torch.Generator().manual_seed(0), **self.options
        )
        for batch in loader:
            x, y = _pair(batch, self.name)
            x = each(x, lambda values: _features(values, self.name, finite=False))
            labels = _label_tensor(y, self.name)
            yield x, labels if self.labelled is None else fitting(labels, self.labelled, self.name)

    def labels(self) -> Tensor:
        """As `Examples`: reads every row once."""
        rows = torch.split(torch.arange(len(self)), _ROWS // 16)
        return torch.cat([y for _, y in self.batches(rows)])

    def signals(self) -> Iterable[npt.NDArray[Any]]:
        """As `Examples`."""
        for x, y in self.batches(torch.split(torch.arange(len(self)), _ROWS // 16)):
            yield from TensorExamples(x, y).signals()


def examples(data: Any, name: str) -> tuple[Examples, int | None]:
    """Rows to learn from or to evaluate on, and the batch size if the data say one.

    Parameters
    ----------
    data
        ``(x, y)``, arrays or tensors; x may also be a tuple of several, or a dict; a map-style data set of such pairs, or of dicts
        with ``labels``; a `DataLoader` of one.
    name
        What errors call it.

    Raises
    ------
    DataError
        Nothing that can be learnt from, with what it is and, where it is one value, which.
    """
    if isinstance(data, DataLoader):
        return _of_loader(data, name)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_has_rows, data)):
        return _in_memory(data[0], data[1], name), None
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"{name}: expected (x, y) as arrays or tensors, a map-style data set or a DataLoader of one, got {type(data).__name__}"
        )
    return _loaded(data, name, {"collate_fn": default_collate}), None


def _has_rows(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor | dict) or (
        isinstance(value, tuple | list) and len(value) > 0 and all(isinstance(v, np.ndarray | Tensor) for v in value)
    )


def _of_loader(loader: DataLoader[Any], name: str) -> tuple[Examples, int | None]:
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"{name}: a DataLoader of an iterable data set has no rows that a run could resume at; give a map-style one"
        )
    if loader.batch_size is None:
        raise DataError(
            f"{name}: a DataLoader that makes its batches by batch_sampler, or none, is not followed; give its data set"
        )
    if type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise DataError(
            f"{name}: the order of rows is the run's, by its seed, so that it can be resumed: a "
            f"{type(loader.sampler).__name__} is not followed. Give the loader's data set, and weights to the loss where rows "
            "shall count differently"
        )
    options: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": loader.num_workers}
    if loader.num_workers:
        options |= {
            "prefetch_factor": loader.prefetch_factor, "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }  # fmt: skip
    plain = not loader.num_workers and loader.collate_fn is default_collate
    if plain and isinstance(loader.dataset, TensorDataset) and len(loader.dataset.tensors) == 2:
        return _in_memory(*loader.dataset.tensors, name), loader.batch_size
    return _loaded(loader.dataset, name, options), loader.batch_size


def _loaded(dataset: Any, name: str, options: dict[str, Any]) -> LoadedExamples:
    if len(dataset) == 0:
        raise DataError(f"{name} is empty")
    return LoadedExamples(dataset, name, options)


def _in_memory(x: Any, y: Any, name: str) -> TensorExamples:
    labels = _label_tensor(y, name)
    x = tuple(x) if isinstance(x, list) else x
    features = each(x, lambda values: _features(values, name, finite=True))
    for values in (
        features.values() if isinstance(features, dict) else features if isinstance(features, tuple) else [features]
    ):
        if len(values) != len(labels):
            raise DataError(f"{name}: x has {len(values)} rows and y {len(labels)}; every row needs its labels")
    if not len(labels):
        raise DataError(f"{name} is empty")
    return TensorExamples(features, labels)


def _pair(batch: Any, name: str) -> tuple[Inputs, Any]:
    if isinstance(batch, dict) and "labels" in batch:
        return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        x = batch[0]
        return tuple(x) if isinstance(x, list) else x, batch[1]
    raise DataError(
        f"{name}: expected pairs of inputs and labels, or dicts with labels, got "
        + (f"{len(batch)} values" if isinstance(batch, tuple | list) else type(batch).__name__)
    )


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what}: expected numbers, got {array.dtype} {list(array.shape)}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(
        np.ascontiguousarray(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    )


def _features(values: Any, name: str, *, finite: bool) -> Tensor:
    """Inputs as the network gets them: float32, or int64 for numbers of tokens."""
    x = _tensor(values, f"{name}, x")
    if x.ndim < 1:
        raise DataError(f"{name}, x: expected rows, got one number")
    if x.dtype in (torch.bool, torch.uint8):
        return x  # masks and pictures: the network says what it takes
    if not x.is_floating_point():
        if x.is_complex():
            raise DataError(f"{name}, x: complex numbers; give real and imaginary parts as channels")
        return x.long()
    x = x.float()  # what is sent is float32
    if finite:
        _check_finite(x, f"{name}, x")
    return x


def _check_finite(x: Tensor, where: str) -> None:
    """Some rows at a time: a mask of the whole would take a quarter of the data's memory again."""
    bad = 0
    first: tuple[int, list[int]] | None = None
    for start in range(0, len(x), _ROWS):
        wrong = ~torch.isfinite(x[start : start + _ROWS])
        if bool(wrong.any()):
            bad += int(wrong.reshape(len(wrong), -1).any(1).sum())
            if first is None:
                row, *place = torch.nonzero(wrong)[0].tolist()
                first = start + row, place
    if first is not None:
        row, place = first
        value = float(x[(row, *place)])
        at = f", at {place}" if place else ""
        raise DataError(
            f"{where}: {bad} of {len(x)} rows hold values that are not finite, the first {value} in row {row}{at}; leave these rows "
            "out or repair them"
        )


def _label_tensor(values: Any, name: str) -> Tensor:
    """Labels as int64, float32 or bool, whatever they were."""
    y = _tensor(values, f"{name}, y")
    if y.ndim < 1:
        raise DataError(f"{name}, y: expected a label for each row, got one number")
    if y.is_floating_point():
        y = y.float()
        _check_finite(y, f"{name}, y")
        return y
    return y if y.dtype is torch.bool else y.long()


def kind_of(labels: Tensor, name: str, *, outputs: int | None, own_loss: bool) -> Labels:
    """What labels are, and how many outputs they need.

    Integers [n] are classes; a matrix [n, k] of 0 and 1 several labels for each row; other floats, [n] or [n, k], numbers to be
    predicted. DataError for what could be two of these, unless there is a loss of one's own.
    """
    if labels.ndim == 1 and not labels.is_floating_point():
        if own_loss and outputs == 1:
            return Labels("other", 1)
        return Labels("classes", outputs or max(2, int(labels.max()) + 1))
    if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()):
        return Labels("labels", labels.shape[1])
    if own_loss and (labels.ndim > 2 or not labels.is_floating_point()):
        return Labels("other", 0)
    if labels.ndim > 2:
        raise DataError(
            f"{name}, y: expected [n] or [n, k], got {list(labels.shape)}; labels of other shapes need a loss of your own"
        )
    if not labels.is_floating_point():
        raise DataError(
            f"{name}, y: an integer matrix {list(labels.shape)} that is not all 0 and 1; give classes as integers [n], several labels "
            "as 0 and 1, and numbers as floats"
        )
    if labels.ndim == 1 and not own_loss and bool((labels == labels.round()).all()):
        raise DataError(
            f"{name}, y: floats [{len(labels)}] that are all whole numbers; give classes as integers (y.astype(int)), or, where they "
            "are numbers to be predicted, loss=torch.nn.MSELoss()"
        )
    return Labels("numbers", labels.shape[1] if labels.ndim == 2 else 1)


def fitting(labels: Tensor, expected: Labels, name: str) -> Tensor:
    """Labels of that kind, in the dtype and shape that losses take; DataError where they are of another, or out of range."""
    kind, outputs = expected.kind, expected.outputs
    if kind == "other":
        return labels
    if kind == "classes":
        if labels.ndim != 1 or labels.is_floating_point():
            raise DataError(f"{name}, y: expected classes as integers [n], got {labels.dtype} {list(labels.shape)}")
        wrong = torch.nonzero((labels < 0) | (labels >= outputs))
        if len(wrong):
            row = int(wrong[0, 0])
            raise DataError(f"{name}, y: label {int(labels[row])} of row {row} is not in 0..{outputs - 1}")
        return labels.long()
    shaped = labels[:, None] if labels.ndim == 1 else labels
    if shaped.ndim != 2 or shaped.shape[1] != outputs:
        raise DataError(f"{name}, y: expected [n, {outputs}], got {list(labels.shape)}")
    if kind == "labels":
        wrong = torch.nonzero((shaped != 0) & (shaped != 1))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise DataError(
                f"{name}, y: label {float(shaped[row, column]):g} of row {row}, column {column} is neither 0 nor 1"
            )
    return shaped.float()


def labelled(found: Examples, expected: Labels, name: str) -> Examples:
    """The same rows with labels as they are expected, checked now where they are in memory, and otherwise when they come."""
    if isinstance(found, TensorExamples):
        return replace(found, y=fitting(found.y, expected, name))
    return replace(cast(LoadedExamples, found), labelled=expected, name=name)


def subset(found: Examples, rows: Tensor, name: str) -> Examples:
    """Some rows."""
    if isinstance(found, TensorExamples):
        return TensorExamples(each(found.x, lambda values: values[rows]), found.y[rows])
    loaded = cast(LoadedExamples, found)
    return replace(loaded, dataset=Subset(loaded.dataset, rows.tolist()), name=name)


def split_off(found: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Training rows and a share of validation rows, at random under a seed; DataError where one of them would be empty."""
    count = round(share * len(found))
    if not 0 < share < 1 or not 0 < count < len(found):
        raise DataError(
            f"validation={share:g} of {len(found)} rows leaves one side empty; take a share between 0 and 1"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(found)))
    chosen = order[:count].sort().values
    return subset(found, order[count:].sort().values, "the training data"), subset(found, chosen, "the validation data")


def of_dataset(data: Dataset) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Training and test rows of a data set of this package."""
    return (data.train_x, data.train_y), (data.test_x, data.test_y)
