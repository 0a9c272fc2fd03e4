"""A layer on SIMD slots by rotations and products with diagonals, for peers that have no matrix product of their own.

A ciphertext's slots are (position, row): positions times rows of the batch. A group of input features fills them periodically, a
group of output features is what they become; an output is a sum over diagonals, each a rotation of the inputs times clear weights
(Halevi and Shoup), rotations in baby and giant steps. Where positions outnumber features, copies of a row start at different
diagonals, which saves rotations, and the client adds up what belongs to one output. `choose` takes the layout that costs least by
the peer's own times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.peers.layers import Layer, LeftOut, Phases, duration


@dataclass(frozen=True)
class Layout:
    """Powers of two: rows of a batch, positions, features of a group going in and coming out, baby steps."""

    rows: int
    positions: int
    inputs: int
    outputs: int
    babies: int = 1

    @property
    def copies(self) -> int:
        """Stretches of positions that compute different diagonals of the same outputs."""
        return min(self.positions // max(self.inputs, self.outputs), self.inputs, self.outputs)

    @property
    def diagonals(self) -> int:
        """Products for each pair of groups."""
        return min(self.inputs, self.outputs) // self.copies

    def feature(self, position: np.ndarray) -> np.ndarray:
        """The input feature of its group that a position holds."""
        copy, place = np.divmod(position % self.positions, max(self.inputs, self.outputs))
        return (place + copy * self.diagonals) % self.inputs

    def weights(self, block: np.ndarray, diagonal: int) -> np.ndarray:
        """What the positions are multiplied with for one diagonal; `block` [outputs, inputs]."""
        position = np.arange(self.positions)
        copy, place = np.divmod(position, max(self.inputs, self.outputs))
        found = block[place % self.outputs, self.feature(position + diagonal)]
        return np.where(copy < self.copies, found, 0.0)

    def collect(self, slots: np.ndarray) -> np.ndarray:
        """Sums of the positions of each output, [rows, outputs]."""
        place = np.arange(self.positions) % max(self.inputs, self.outputs) % self.outputs
        sums = np.zeros((self.outputs, self.rows))
        np.add.at(sums, place, slots.reshape(self.positions, self.rows))
        return sums.T


def power(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


def choose(n: int, d: int, o: int, slots: int, costs: Mapping[str, float]) -> Layout:
    """The layout of least cost: of encrypt, encode, multiply, hoisted and full rotations, decrypt, each by its milliseconds."""
    rows = power(n)
    if rows > slots:
        raise LeftOut("only for batches that fit one ciphertext's slots")
    positions = slots // rows

    def cost(layout: Layout) -> float:
        ins, outs = -(-d // layout.inputs), -(-o // layout.outputs)
        return (
            ins * (costs["encrypt"] + (layout.babies - 1) * costs["hoisted"])
            + outs * (costs["decrypt"] + (layout.diagonals // layout.babies - 1) * costs["rotate"])
            + ins * outs * layout.diagonals * (costs["encode"] + costs["multiply"])
        )

    def powers(limit: int) -> Iterator[int]:
        return (1 << k for k in range(limit.bit_length()))

    plain = [
        Layout(rows, positions, inputs, outputs)
        for inputs in powers(min(positions, power(d)))
        for outputs in powers(min(positions, power(o)))
    ]
    layouts = [
        Layout(rows, positions, layout.inputs, layout.outputs, babies)
        for layout in plain
        for babies in powers(layout.diagonals)
    ]
    return min(layouts, key=cost)


class Diagonals(Layer):
    """What peers with slots share; each brings its own operations on ciphertexts."""

    slots = 0
    costs: Mapping[str, float] = {}
    """Milliseconds of the operations, roughly; only layouts depend on them."""
    most_plaintexts = 20_000
    """As many encoded diagonals are kept at once; more are encoded where they are needed, in the forward pass."""

    def setup(self) -> None:
        self.layout = layout = choose(self.n, self.d, self.o, self.slots, self.costs)
        self.ins, self.outs = -(-self.d // layout.inputs), -(-self.o // layout.outputs)
        products = self.ins * self.outs * layout.diagonals
        if products > (100_000 if self.patient else self.most_plaintexts):
            raise LeftOut(duration(products * (self.costs["encode"] + self.costs["multiply"]) / 1e3))
        giants = range(layout.babies, layout.diagonals, layout.babies)
        self.steps = [step * layout.rows for step in (*range(1, layout.babies), *giants)]
        self.keys(self.steps)

    def phases(self) -> Phases:
        yield "encrypt", self._encrypt
        if self.ins * self.outs * self.layout.diagonals <= self.most_plaintexts:
            yield "weights", self._weights
        yield "forward", self._forward
        yield "decrypt", self._decrypt

    def _encrypt(self) -> None:
        layout = self.layout
        x = np.zeros((layout.rows, self.ins * layout.inputs))
        x[: self.n, : self.d] = self.x
        places = layout.feature(np.arange(layout.positions))
        groups = x.reshape(layout.rows, self.ins, layout.inputs)
        self.request = [self.encrypt(groups[:, group, places].T.ravel()) for group in range(self.ins)]

    def _plaintexts(self) -> Iterator[Any]:
        """Encoded diagonals, in the order in which the forward pass needs them."""
        layout = self.layout
        weight = np.zeros((self.outs * layout.outputs, self.ins * layout.inputs))
        weight[: self.o, : self.d] = self.weight
        blocks = weight.reshape(self.outs, layout.outputs, self.ins, layout.inputs)
        for outs in range(self.outs):
            for giant in range(0, layout.diagonals, layout.babies):
                for ins in range(self.ins):
                    for baby in range(layout.babies):
                        diagonal = np.roll(layout.weights(blocks[outs, :, ins], giant + baby), giant)
                        yield self.encode(np.repeat(diagonal, layout.rows))

    def _weights(self) -> None:
        self.encoded = list(self._plaintexts())

    def _forward(self) -> None:
        layout = self.layout
        keep = self.ins * self.outs * layout.diagonals <= self.most_plaintexts
        plaintexts = iter(self.encoded) if keep else self._plaintexts()
        babies = [step * layout.rows for step in range(1, layout.babies)]
        rotated = [[x, *self.rotations(x, babies)] for x in map(self.load, self.request)]
        bias = np.zeros(self.outs * layout.outputs)
        bias[: self.o] = self.bias
        self.reply = []
        for outs in range(self.outs):
            total = None
            for giant in range(0, layout.diagonals, layout.babies):
                part = None
                for group in rotated:
                    for x in group:
                        product = self.multiply(x, next(plaintexts))
                        part = product if part is None else self.add(part, product)
                if giant:
                    part = self.rotate(part, giant * layout.rows)
                total = part if total is None else self.add(total, part)
            own = np.zeros(layout.positions)
            own[: layout.outputs] = bias[outs * layout.outputs : (outs + 1) * layout.outputs]
            self.reply.append(self.finish(total, np.repeat(own, layout.rows)))
        self.bytes = (sum(map(len, self.request)), sum(map(len, self.reply)))

    def _decrypt(self) -> np.ndarray:
        found = [self.layout.collect(self.decrypt(reply)) for reply in self.reply]
        return np.concatenate(found, axis=1)[: self.n, : self.o]

    def keys(self, steps: Sequence[int]) -> None:
        """Make all keys, among them those of rotations to the left by `steps`; set `once`."""
        raise NotImplementedError

    def encrypt(self, slots: np.ndarray) -> bytes:
        raise NotImplementedError

    def load(self, message: bytes) -> Any:
        """The ciphertext of a message."""
        raise NotImplementedError

    def encode(self, slots: np.ndarray) -> Any:
        raise NotImplementedError

    def rotations(self, ciphertext: Any, steps: Sequence[int]) -> list[Any]:
        """Several rotations of one ciphertext, hoisted."""
        raise NotImplementedError

    def rotate(self, ciphertext: Any, step: int) -> Any:
        raise NotImplementedError

    def multiply(self, ciphertext: Any, plaintext: Any) -> Any:
        raise NotImplementedError

    def add(self, first: Any, second: Any) -> Any:
        """The sum; `first` may become it."""
        raise NotImplementedError

    def finish(self, ciphertext: Any, bias: np.ndarray) -> bytes:
        """The message of a ciphertext to which a vector is added."""
        raise NotImplementedError

    def decrypt(self, message: bytes) -> np.ndarray:
        raise NotImplementedError
