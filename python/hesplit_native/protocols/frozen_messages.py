"""What a model server and its clients say to each other beside ciphertexts: which layers there are, and why a request is refused.

Every request can be answered by every server that holds the same weights: none refers to an earlier one, unless it is for a private
layer, to the KEY of its connection. `step` counts the requests of one connection and only tells its replies apart; `session` is zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from hesplit_native.choices import Direction, Precision
from hesplit_native.errors import (
    BudgetError,
    HESplitError,
    KeyMismatchError,
    ParameterError,
    ProtocolError,
    QueryBudgetExceeded,
    RangeError,
    WireError,
    shortened,
)
from hesplit_native.layer.keyed import KeyedAgreement
from hesplit_native.layer.parameters import Parameters
from hesplit_native.protocols import messages

#: The longest part of a hint in one message.
HINT_PART = 1 << 23
#: The longest list of layers that a client reads.
MAX_OFFER = 1 << 24
#: A request carries no more values than that up or down; what has more rows is sent in several.
MAX_VALUES = 1 << 23
#: Layers that one request asks for at most.
MAX_TOGETHER = 8

#: Layers without hints of one server.
MAX_KEYED = 1024
#: Refusals of one connection or session that are written to the log.
LOGGED_REFUSALS = 10

_MAX_REASON = 4000
_ERRORS = {
    kind.__name__: kind
    for kind in (
        ParameterError, RangeError, WireError, KeyMismatchError, ProtocolError, BudgetError, QueryBudgetExceeded,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """One layer of a server: ``y = x W^T + b`` for x [n, in_features], and ``dJ/dx = dJ/dy W`` where `backward`.

    `keyed`: it has no hints, and is asked under keys; with the error and the noise that follow from it.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    precision: Precision
    epoch: str
    backward: bool
    keyed: KeyedAgreement | None = None

    @property
    def shape(self) -> str:
        """For errors."""
        return f"{self.in_features} -> {self.out_features} {'with' if self.bias else 'without'} bias"

    def takes_rows_of(self, other: Description) -> bool:
        """Whether rows that were encrypted for the other layer serve this one, too; layers with keys have their own."""
        return (
            self.keyed is None
            and other.keyed is None
            and (self.in_features, self.bias, self.precision, self.epoch)
            == (other.in_features, other.bias, other.precision, other.epoch)
        )

    @property
    def kind(self) -> str:
        """For errors: the shape, and what is particular."""
        if self.keyed is None:
            return self.shape
        return f"{self.shape}, private" if self.private else f"{self.shape}, without hints"

    @property
    def private(self) -> bool:
        """Whether replies hide the weights."""
        return self.keyed is not None and self.keyed.private

    def to_json(self) -> dict[str, Any]:
        """What `take_offer` reads."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.keyed is not None:
            agreed = self.keyed
            values["keyed"] = {"parameters": agreed.parameters.to_bytes().hex(), "weight_norm": agreed.weight_norm}
        return values


def offer(layers: Iterable[Description]) -> bytes:
    """The body of an OFFER."""
    return json.dumps({"layers": [layer.to_json() for layer in layers]}).encode()


def take_offer(body: memoryview) -> dict[str, Description]:
    """The layers of an OFFER by name; WireError for anything else."""
    if len(body) > MAX_OFFER:
        raise WireError(f"offer: a list of {len(body)} bytes; none is longer than {MAX_OFFER}")
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError:
        raise WireError("offer: the text is not UTF-8") from None
    layers = messages.json_object(text, "offer").get("layers")
    if not isinstance(layers, list):
        raise WireError("offer: expected a list of layers")
    if sum(isinstance(layer, dict) and layer.get("keyed") is not None for layer in layers) > MAX_KEYED:
        raise WireError(
            f"offer: more than {MAX_KEYED} layers without hints, whose parameters take a client time to check"
        )
    found = [_description(layer) for layer in layers]
    return {layer.name: layer for layer in found}


def _description(values: Any) -> Description:
    kinds = get_type_hints(Description)
    if not isinstance(values, dict) or not set(kinds) <= set(values):
        raise WireError(f"offer: a layer has {', '.join(kinds)}")
    del kinds["keyed"]
    for name, kind in kinds.items():
        value = values[name]
        fits = value in get_args(kind) if get_args(kind) else type(value) is kind
        if not fits or (kind is int and value < 1):
            raise WireError(f"offer: a layer's {name} cannot be {str(value)[:100]!r}")
    found = Description(**{name: values[name] for name in kinds})
    return found if values["keyed"] is None else replace(found, keyed=_agreement(found, values["keyed"]))


def _agreement(layer: Description, values: Any) -> KeyedAgreement:
    agreed = values if isinstance(values, dict) else {}
    parameters, norm = agreed.get("parameters"), agreed.get("weight_norm")
    if not isinstance(parameters, str) or type(norm) is not float or layer.backward:
        raise WireError("offer: a layer with keys has parameters and a weight_norm, and answers no backward requests")
    try:
        found = Parameters.from_bytes(bytes.fromhex(parameters))
        return KeyedAgreement(layer.in_features + layer.bias, layer.out_features, found, norm)
    except ValueError as error:  # not hexadecimal, or a WireError or ParameterError of the core
        raise WireError(f"offer: {layer.name[:200]} cannot be asked under keys in this way: {error}") from error


def key_for(layer: Description, material: bytes) -> tuple[bytes, bytes]:
    """The body of a KEY."""
    return messages.text(json.dumps(layer.to_json())), material


def take_key(body: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The layer of a KEY as the client knows it, and its public material."""
    return messages.take_json(body, "key")


def address(layers: Sequence[str], direction: Direction, **more: int) -> bytes:
    """The part of a body that says which matrices are meant."""
    return messages.text(json.dumps({"layers": list(layers), "direction": direction} | more))


def take_address(
    body: memoryview, name: str, most: int = MAX_TOGETHER
) -> tuple[list[str], Direction, dict[str, Any], memoryview]:
    """One to `most` different layers, direction, everything that was said, and the body after it."""
    values, rest = messages.take_json(body, name)
    layers: Any = values.get("layers")
    direction: Any = values.get("direction")
    if (
        not isinstance(layers, list)
        or not all(isinstance(layer, str) for layer in layers)
        or direction not in ("forward", "backward")
    ):
        raise WireError(f"{name}: expected layers and a direction, forward or backward")
    if not 1 <= len(layers) <= most or len(set(layers)) != len(layers):
        raise WireError(f"{name}: expected 1 to {most} different layers, got {len(layers)}")
    return layers, direction, values, rest


def refusal(error: HESplitError, *, later: bool) -> bytes:
    """The body of a REFUSED. `later`: the same request may be answered when others need less."""
    kind = next((name for name, known in _ERRORS.items() if type(error) is known), "ProtocolError")
    return messages.text(json.dumps({"error": kind, "reason": str(error)[:_MAX_REASON], "later": later}))


def take_refusal(body: memoryview) -> tuple[HESplitError, bool]:
    """The error of a REFUSED, and whether to try again later."""
    values, rest = messages.take_json(body, "refused")
    messages.take_nothing(rest, "refused")
    kind, reason = _ERRORS.get(str(values.get("error")), ProtocolError), values.get("reason")
    if not isinstance(reason, str):
        raise WireError("refused: expected a reason")
    return kind(reason), values.get("later") is True


def unknown_layer(name: str, known: Iterable[str]) -> ParameterError:
    """What to say about a name that is none: those that are like it, and what there is."""
    names = list(known)
    close = get_close_matches(name[:200], names, 3)
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    return ParameterError(f"the server has no layer {name[:200]!r}{meant}; it has {shortened(names)}")
