"""The layers of a server that holds a model: such as have hints, and such as are asked under a client's keys."""

from __future__ import annotations

from dataclasses import dataclass

from hesplit_native.choices import Direction
from hesplit_native.errors import ParameterError
from hesplit_native.layer.frozen import FrozenServer
from hesplit_native.layer.keyed import KeyedServer
from hesplit_native.protocols.frozen_messages import Description


@dataclass(frozen=True)
class FrozenLayer:
    """A layer that is served: its matrix, and the transposed one for gradients, or None."""

    name: str
    forward: FrozenServer
    backward: FrozenServer | None

    @property
    def description(self) -> Description:
        """What clients are told."""
        w = self.forward
        return Description(
            self.name, w.in_features, w.out_features, w.has_bias, w.precision, w.epoch, self.backward is not None
        )

    @property
    def resident_bytes(self) -> int:
        """Memory of both matrices."""
        return sum(matrix.resident_bytes for matrix in self.matrices)

    @property
    def matrices(self) -> tuple[FrozenServer, ...]:
        """Forward, and backward where gradients are served."""
        return (self.forward,) if self.backward is None else (self.forward, self.backward)

    def at(self, direction: Direction) -> FrozenServer:
        """The matrix of a direction; ParameterError where gradients are not served."""
        if direction == "forward":
            return self.forward
        if self.backward is None:
            raise ParameterError(f"the server answers no backward requests, for {self.name} as for its other layers")
        return self.backward


@dataclass(frozen=True)
class KeyedLayer:
    """A layer that is served without hints, to clients that send keys; there are no gradients."""

    name: str
    server: KeyedServer

    @property
    def description(self) -> Description:
        """What clients are told."""
        w = self.server
        return Description(self.name, w.in_features, w.out_features, w.has_bias, w.precision, "", False, w.agreement)

    @property
    def resident_bytes(self) -> int:
        """Memory of the matrix."""
        return self.server.resident_bytes

    @property
    def matrices(self) -> tuple[FrozenServer, ...]:
        """Those that have hints: none."""
        return ()

    def at(self, direction: Direction) -> FrozenServer:
        """ParameterError: nothing of it is had without a key."""
        private = self.server.agreement.private
        if direction == "backward" and private:
            raise ParameterError(
                f"the weights of {self.name} are private: backward requests, which would tell them, are not answered"
            )
        if direction == "backward":
            raise ParameterError(f"the server answers no backward requests, for {self.name} as for its other layers")
        if private:
            raise ParameterError(f"the weights of {self.name} are private: there is no hint, which would tell them")
        raise ParameterError(f"{self.name} is served without hints")
