"""How often every beat was released with noise: what epsilon is computed from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.errors import DataError
from hesplit_native.files import make_folder
from hesplit_native.protocols.storage import read_tensors, write_tensors
from hesplit_native.training.defences import Defender

_FORMAT = "hesplit_native-releases-1"

Rows = Tensor | npt.NDArray[np.int64]


class PrivacyAccount:
    """The noised releases of a run, by beat: rows of the same signal, bit for bit, are one beat, whoever holds them.

    In a file it counts at least what was sent: what may be sent is written ahead (`ahead`), and put right when that is over
    (`settle`). So a run that was killed and resumed counts what it sent before, and what it sends again.

    Parameters
    ----------
    defender
        None, or one that noises nothing: nothing is counted.
    signals
        Of all rows that may be released: they are named by their place here.
    path
        The file; None: in memory.
    """

    def __init__(
        self, defender: Defender | None, signals: Iterable[npt.NDArray[np.float32]], path: Path | None
    ) -> None:
        self._defender = defender if defender is not None and defender.defences.private else None
        self._path = path
        found: dict[bytes, int] = {}
        if self._defender is not None:
            # Adding zero makes one of its two signs.
            digests = (hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest() for row in signals)
            self._beat = np.array([found.setdefault(digest, len(found)) for digest in digests], dtype=np.int64)
        self._digests = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 16)
        #: By beat: releases of its activations, of its dJ/dy, and different labels that were answered for.
        self._counts = np.zeros((len(found), 3), dtype=np.int64)

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Labels [n] of the first rows after randomised response: one answer for a beat, however many copies there are."""
        if self._defender is None or self._defender.defences.label_epsilon is None:
            return labels
        pairs = np.stack([self._beat[: len(labels)], labels.numpy()], axis=1)
        distinct, copies = np.unique(pairs, axis=0, return_inverse=True)
        self._counts[:, 2] = np.bincount(distinct[:, 0], minlength=len(self._counts))
        return self._defender.labels(torch.from_numpy(distinct[:, 1]), classes)[torch.from_numpy(copies.reshape(-1))]

    def ahead(self, rows: Rows, *, gradients: bool = True) -> None:
        """Write durably that these rows may be released until this is called again; OSError if that cannot be written."""
        if self._defender is not None and self._path is not None:
            self._write(self._counts + self._of(rows, gradients=gradients))

    def add(self, rows: Rows, *, gradients: bool = True) -> None:
        """These rows are released now: their activations, and in training their dJ/dy."""
        if self._defender is not None:
            self._counts += self._of(rows, gradients=gradients)

    def settle(self) -> None:
        """Write what was released, which is less than what was written ahead: where that fails, too much is counted."""
        if self._defender is not None and self._path is not None:
            with contextlib.suppress(OSError):
                self._write(self._counts)

    def resume(self) -> None:
        """Go on from the file. DataError where there is none, or it counts for other signals."""
        if self._defender is None or self._path is None:
            return
        tensors, _ = read_tensors(self._path, _FORMAT)
        counts = tensors.get("counts")
        if counts is None or counts.shape != self._counts.shape or counts.dtype != torch.int64 or (counts < 0).any():
            raise DataError(f"{self._path} is damaged, or counts the releases of other data")
        if not np.array_equal(tensors.get("beats", torch.empty(0)).numpy(), self._digests):
            raise DataError(f"{self._path} counts the releases of other data than this run's")
        self._counts = counts.numpy().copy()

    def epsilon(self) -> float | None:
        """What the releases of a beat add up to, for the beat that was released most; None without noise."""
        if self._defender is None:
            return None
        kinds = np.unique(self._counts, axis=0)
        return max((self._defender.epsilon(*(int(count) for count in kind)) for kind in kinds), default=0.0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report has to know."""
        if self._defender is None or len(self._beat) == len(self._counts):
            return ()
        copies = np.bincount(self._beat)
        return (
            f"{(copies > 1).sum()} beats are in the data more than once, one of them {copies.max()} times: epsilon counts every copy",
        )

    def _of(self, rows: Rows, *, gradients: bool) -> npt.NDArray[np.int64]:
        released = np.bincount(self._beat[np.asarray(rows)], minlength=len(self._counts))
        return np.stack([released, released * gradients, np.zeros_like(released)], axis=1)

    def _write(self, counts: npt.NDArray[np.int64]) -> None:
        assert self._path is not None
        make_folder(self._path.parent)
        tensors = {"beats": torch.from_numpy(self._digests.copy()), "counts": torch.from_numpy(counts)}
        write_tensors(self._path, tensors, _FORMAT, {})
