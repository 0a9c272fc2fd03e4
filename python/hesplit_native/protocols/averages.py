"""Averages of a group's layers: of what its members merge, an epoch at a time, or of checkpoints that one of them names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.answers import ServerLayer
from hesplit_native.protocols.sessions import SessionState, check_same_group
from hesplit_native.protocols.storage import CheckpointStore
from hesplit_native.protocols.terms import MAX_MEMBERS


@dataclass(frozen=True)
class _Share:
    """A checkpoint and its weight in an average."""

    run: str
    step: int
    weight: float


def merge(session: SessionState, body: memoryview) -> None:
    """Take this member's layer with the weight that it asks for; with the last member's the average is there."""
    layer = _averaged_layer(session)
    group = session.group
    assert group is not None
    with group.lock:
        weight = messages.take_value(body, "merge", "weight", float)
        if not 0 < weight <= 1e9 or session.run in group.offers:
            raise ProtocolError("an average takes one offer of every member, with a positive weight")
        group.offers[session.run] = weight, weights_of(layer)
        if len(group.offers) == session.terms.members:
            total = sum(weight for weight, _ in group.offers.values())
            group.average = _weighted_sum((weight / total, state) for weight, state in group.offers.values())
            group.offers.clear()


def adopt(
    session: SessionState, body: memoryview, store: CheckpointStore, resize: Callable[[SessionState, int], None]
) -> None:
    """Go on from the average: of what was merged, or, whoever else is there, of the checkpoints of the group that `body` names.

    Of a single one that is to be taken `whole` the optimiser's moments, too. `resize` reserves that many bytes for the request.
    """
    layer = _averaged_layer(session)
    if len(body):
        shares, whole = _take_shares(body)
        resize(session, 2 * len(body) + session.costs.layer)
        if whole:
            layer.load(_checkpoint(session, store, shares[0], whole=True))
        else:
            total = sum(share.weight for share in shares)
            states = ((share.weight / total, _stored_weights(session, store, share)) for share in shares)
            layer.module.load_state_dict(_weighted_sum(states))
    else:
        group = session.group
        assert group is not None
        with group.lock:
            if group.average is None or session.run in group.offers:
                raise ProtocolError("the average is not there yet: every member merges first")
            layer.module.load_state_dict(group.average)
    session.steps += 1  # a state of its own, which a checkpoint can name
    layer.version += 1


def weights_of(layer: ServerLayer) -> dict[str, Tensor]:
    """A copy of what the layer computes with."""
    return {name: value.detach().clone() for name, value in layer.module.state_dict().items()}


def _averaged_layer(session: SessionState) -> ServerLayer:
    if session.layer is None or not session.terms.members:
        raise ProtocolError("only layers in the clear of a group with members can be averaged")
    return session.layer


def _stored_weights(session: SessionState, store: CheckpointStore, share: _Share) -> dict[str, Tensor]:
    other = PROTOCOLS[session.terms.protocol].halves.layer(session.terms)
    assert other is not None
    tensors = _checkpoint(session, store, share)
    # Without the moments, which nobody takes, and which may be another optimiser's.
    other.load({name: value for name, value in tensors.items() if not name.startswith("optimizer.")})
    return other.module.state_dict()


def _checkpoint(
    session: SessionState, store: CheckpointStore, share: _Share, *, whole: bool = False
) -> dict[str, Tensor]:
    """A checkpoint of a member of this session's group. Of others it does not say whether they are there."""
    try:
        _, terms, tensors = store.load(share.run, share.step)
    except ProtocolError:
        terms = None
    if terms is None or terms.group != session.terms.group:
        raise ProtocolError(f"no member of the group has a checkpoint of step {share.step} of run {share.run[:8]} here")
    check_same_group(terms, session.terms)
    if whole and terms.server_optimizer != session.terms.server_optimizer:
        raise ProtocolError("adopt: the checkpoint has the moments of another server_optimizer")
    return tensors


def _take_shares(body: memoryview) -> tuple[list[_Share], bool]:
    """The checkpoints that an average is of, and whether the only one of them is to be taken whole."""
    values, rest = messages.take_json(body, "adopt")
    messages.take_nothing(rest, "adopt")
    rows, whole = values.get("of"), values.get("whole", False)
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_MEMBERS or type(whole) is not bool:
        raise WireError(f"adopt: expected 1 to {MAX_MEMBERS} checkpoints, and whole as bool if at all")
    for row in rows:
        if not isinstance(row, list) or [type(value) for value in row] != [str, int, float]:
            raise WireError("adopt: expected a run, a step and a weight of each checkpoint")
        if not 0 <= row[1] <= 2**62 or not 0 < row[2] <= 1e9:
            raise WireError("adopt: steps count from 0, and weights are positive")
    if len({run for run, _, _ in rows}) != len(rows) or (whole and len(rows) > 1):
        raise WireError("adopt: a run counts once, and only one checkpoint can be taken whole")
    return [_Share(*row) for row in rows], whole


def _weighted_sum(states: Iterable[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Of states with weights that add up to one; they may be made one after the other."""
    found: dict[str, Tensor] = {}
    for weight, state in states:
        for name, value in state.items():
            found[name] = found[name] + weight * value if name in found else weight * value
    return found
