"""Every attack of a client on the weights of its server's layer, on real replies: the audit's second table.

Layers are trained in the clear on the audit's heartbeats, then asked by a client of the encrypted layer. Each attack has what that
client sent, drew and got, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer
from hesplit_native.layer.parameters import Parameters
from hesplit_native.privacy.attacks import weights as attack
from hesplit_native.privacy.audit import Finding, Observer
from hesplit_native.protocols.queries import default_queries
from hesplit_native.seeding import seeded

Floats = npt.NDArray[np.float64]

#: A weight counts as found when the error of its estimate is below that share of their root mean square.
FOUND = 0.05

_TRAINED = 150  # steps of Adam with all rows
_SHRUNK = np.geomspace(0.25, 1.0, 8)  # the same layer at these factors is asked for its head


@dataclass(frozen=True)
class LayerSetting:
    """A row: the shape of a layer, samples of a request, and how both sides are made.

    `parameters` are more arguments of `Parameters.recommend`, `server` more of `LinearServer`.
    """

    title: str
    in_features: int
    out_features: int
    samples: int = 4
    parameters: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRow:
    """All findings of one setting."""

    setting: LayerSetting
    findings: dict[str, Finding]


@dataclass(frozen=True)
class Curve:
    """Relative error of W by least squares against the number of answers, for each standard deviation of noise on these."""

    setting: LayerSetting
    budget: int  # of `default_queries`
    solving: int  # answers that determine W
    counts: list[int]
    errors: dict[float, list[float]]  # by the deviation, in units of the logits


def settings() -> list[LayerSetting]:
    """Layers whose lattices LLL reduces, and the papers': with replies as they are, and with private ones."""
    shapes = ((12, 1), (20, 1), (40, 1), (12, 5), (256, 5))
    kinds: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("replies as they are", {}, {}),
        ("private replies", {"private_weights": True}, {"private": True}),
    )
    return [
        LayerSetting(f"weights of {d} -> {o}, {title}", d, o, parameters=parameters, server=server)
        for title, parameters, server in kinds
        for d, o in shapes
    ]


class AskedLayer:
    """A layer that was trained on a dataset, at a server, and the client that asks it.

    Attributes
    ----------
    weight, bias, x
        [out_features, in_features], [out_features]; features [rows, in_features] that it was not trained on.
    """

    def __init__(self, setting: LayerSetting, dataset: Dataset) -> None:
        self.setting = setting
        inputs, outputs = setting.in_features, setting.out_features
        features = _features(dataset, inputs)
        self.x = features(dataset.test_x)
        self.weight, self.bias = _trained(features(dataset.train_x), dataset.train_y, outputs)
        parameters = Parameters.recommend(
            in_features=inputs, out_features=outputs, batch_size=setting.samples, **setting.parameters
        )
        self.client = LinearClient(SecretKey.generate(parameters), inputs, outputs)
        self._material = self.client.public_material()
        self._server = self.server(self.weight)

    def server(self, weight: Floats) -> LinearServer:
        """One of the row's kind that holds these weights."""
        return LinearServer(self._material, weight, self.bias, **self.setting.server)

    def exchange(self, x: Floats, server: LinearServer | None = None) -> tuple[bytes, bytes]:
        """A request for rows x and its reply."""
        request = self.client.encrypt(x)
        return request, (server or self._server).forward(request)

    def answers(self, x: Floats) -> Floats:
        """Logits of rows x [n, in_features]."""
        parts = (x[start : start + _AT_ONCE] for start in range(0, len(x), _AT_ONCE))
        return np.concatenate([self.client.decrypt(self.exchange(part)[1]) for part in parts])


_AT_ONCE = 1024


def _features(dataset: Dataset, count: int) -> Callable[[npt.NDArray[np.float32]], Floats]:
    """Signals [n, channels, samples] as rows of as many features: random projections through tanh, standardised."""
    width = int(np.prod(dataset.train_x.shape[1:]))
    projection = np.random.default_rng(0).normal(size=(width, count)) / np.sqrt(width)
    flat = dataset.train_x.reshape(len(dataset.train_x), -1)
    mean, deviation = flat.mean(0), flat.std(0) + 1e-3
    return lambda signals: np.tanh(3 * ((signals.reshape(len(signals), -1) - mean) / deviation) @ projection)


def _trained(x: Floats, labels: npt.NDArray[np.int64], outputs: int) -> tuple[Floats, Floats]:
    """Weight and bias of a layer whose output k tells class k from the others."""
    with seeded(0):
        layer = nn.Linear(x.shape[1], outputs)
    rows = torch.from_numpy(x).float()
    targets = (torch.from_numpy(labels)[:, None] == torch.arange(outputs)).float()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(_TRAINED):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(layer(rows), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def audit_layer(setting: LayerSetting, dataset: Dataset) -> LayerRow:
    """Train a layer, ask a server that holds it, and run every attack on its weights."""
    layer = AskedLayer(setting, dataset)
    budget = default_queries(setting.in_features, setting.out_features)
    return LayerRow(
        setting,
        {
            "reply": _of_reply(layer),
            "head": _of_head(layer),
            "answers": _of_answers(layer, setting.in_features + 1),
            "budget": _of_answers(layer, budget),
        },
    )


def _of_reply(layer: AskedLayer) -> Finding:
    request, reply = layer.exchange(layer.x[: layer.setting.samples])
    try:
        found = attack.from_reply(layer.client, request, reply)
    except ParameterError as error:
        return Finding(None, text=str(error))
    return _found(found.weights, layer.weight, f"lattice of {found.dimension} dimensions")


def _of_answers(layer: AskedLayer, count: int) -> Finding:
    asked = attack.questions(layer.setting.in_features, _most(layer))[:count]
    found, _ = attack.from_answers(asked, layer.answers(asked))
    return _found(found, layer.weight, f"{count} answers, relative error {relative_error(found, layer.weight):.2g}")


def _most(layer: AskedLayer) -> float:
    """The largest that one feature may be alone."""
    return min(layer.client.parameters.activation_bound, layer.client.parameters.activation_norm)


def _of_head(layer: AskedLayer) -> Finding:
    """Share of pairs of weights, the layer's at several sizes, of which a reply's scale tells the larger one; chance is a half."""
    x = layer.x[: layer.setting.samples]
    heads = [
        attack.from_head(layer.client, layer.exchange(x, layer.server(factor * layer.weight))[1]) for factor in _SHRUNK
    ]
    by_length = _ordered([head.length for head in heads])
    return Finding(
        _ordered([head.reach for head in heads]),
        0.5,
        f"logits up to {heads[-1].reach:.4g}; by length alone {by_length:.2f}",
    )


def _ordered(values: list[float] | list[int]) -> float:
    """Share of pairs that are in rising order; equal ones count half."""
    pairs = [(a, b) for k, a in enumerate(values) for b in values[k + 1 :]]
    return float(np.mean([0.5 + 0.5 * np.sign(b - a) for a, b in pairs]))


def _found(estimate: Floats, truth: Floats, text: str) -> Finding:
    """Share of weights that were found; by chance: of the same estimate for weights in another order."""
    others = np.random.default_rng(0).permutation(truth.ravel()).reshape(truth.shape)
    return Finding(_share(estimate, truth), _share(estimate, others), text)


def _share(estimate: Floats, truth: Floats) -> float:
    return float((np.abs(estimate - truth) <= FOUND * _size(truth)).mean())  # NaN is not found


def relative_error(estimate: Floats, truth: Floats) -> float:
    """Root mean square of the error of W, in units of that of W."""
    return _size(estimate - truth) / _size(truth)


def _size(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def curve(
    setting: LayerSetting,
    dataset: Dataset,
    *,
    deviations: tuple[float, ...] = (0.0, 0.25, 2.0, 16.0),
    most: int = 8192,
    observer: Observer | None = None,
) -> Curve:
    """Ask up to `most` questions, add noise of each deviation to the answers, and solve for W by least squares.

    The client knows the noise, and how large weights are, which it can take from a reply's head. Its questions are rows of random
    signs, as long as rows may be: independent ones, whose answers say most.
    """
    layer, rng = AskedLayer(setting, dataset), np.random.default_rng(0)
    inputs = setting.in_features
    parameters = layer.client.parameters
    size = min(parameters.activation_bound, parameters.activation_norm / np.sqrt(inputs))
    # Float32 noise of the sum of squares must not take them out of the agreed ranges.
    x = 0.999 * size * rng.choice([-1.0, 1.0], size=(most, inputs))
    answers = layer.answers(x)
    noise = rng.normal(size=answers.shape)
    budget, solving = default_queries(inputs, setting.out_features), inputs + 1
    counts = sorted({budget, solving, *np.geomspace(max(1, inputs // 8), most, 12).astype(int).tolist()})
    errors: dict[float, list[float]] = {}
    for deviation in deviations:
        errors[deviation] = []
        for count in counts:
            ridge = (deviation / _size(layer.weight)) ** 2
            found, _ = attack.from_answers(x[:count], answers[:count] + deviation * noise[:count], ridge=ridge)
            errors[deviation].append(relative_error(found, layer.weight))
            if observer is not None:
                done = len(errors) * len(counts) - len(counts) + len(errors[deviation])
                observer("W from answers", done, len(deviations) * len(counts))
    return Curve(setting, budget, solving, counts, errors)
