"""Where the numbers of a tensor sit among coefficients, and the weight polynomials that find linear maps of them.

Of a tensor that is a matrix ``[rows, columns]``, number ``[s, j * width + i]`` of a group of rows is coefficient
``i * group + s`` of polynomial j. These are the blocks of `docs/packing.md` with rows and features exchanged: places of rows do
not depend on the number of columns, so that tensors of different ones can be added up in one product. Whoever encrypts does not
know what will be multiplied; whoever multiplies may choose either of

- the same map for every row, ``y[s, o] = sum_c x[s, c] matrix[c, o]``: output o of row s is found at coefficient
  ``u * spacing + s`` of product p, ``o = p * per_product + u``;
- any map of all numbers to `outputs` ones, output o at coefficient ``u * spacing``.

With a spacing of at least a block, what else is between the outputs meets none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Outputs of a row that a layout is chosen for: nothing is known of the map yet, and the layers of split learning have few.
_EXPECTED_OUTPUTS = 8


@dataclass(frozen=True)
class Layout:
    """Where ``[rows, columns]`` numbers sit in polynomials of `degree` coefficients."""

    degree: int
    rows: int
    columns: int
    group: int  # rows that share polynomials
    width: int  # coefficients of a row in one of them

    @classmethod
    def choose(cls, degree: int, rows: int, columns: int) -> Layout:
        """The layout with the fewest bytes there and, with `_EXPECTED_OUTPUTS` outputs a row, back.

        The group depends on the rows alone. A fresh polynomial takes about as many bytes as a product.
        """
        group = min(rows, degree // 4)
        best: tuple[int, Layout] | None = None
        parts = -(-columns // (degree // group))
        while best is None or parts <= columns:
            layout = cls(degree, rows, columns, group, -(-columns // parts))
            polynomials = layout.parts + -(-_EXPECTED_OUTPUTS // (degree // layout.block))
            if best is None or polynomials < best[0]:
                best = polynomials, layout
            parts *= 2
        return best[1]

    @property
    def block(self) -> int:
        """Coefficients of a polynomial that hold numbers."""
        return self.group * self.width

    @property
    def parts(self) -> int:
        """Polynomials of one group."""
        return -(-self.columns // self.width)

    @property
    def groups(self) -> int:
        """Groups of rows."""
        return -(-self.rows // self.group)

    def place(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers ``[rows, columns]`` as coefficients ``[groups, parts, degree]``."""
        padded = np.zeros((self.groups * self.group, self.parts * self.width), np.int64)
        padded[: self.rows, : self.columns] = values
        blocks = padded.reshape(self.groups, self.group, self.parts, self.width).transpose(0, 2, 3, 1)
        out = np.zeros((self.groups, self.parts, self.degree), np.int64)
        out[:, :, : self.block] = blocks.reshape(self.groups, self.parts, self.block)
        return out

    def read(self, coefficients: Floats) -> Floats:
        """The numbers ``[rows, columns]`` among coefficients ``[groups, parts, degree]``."""
        blocks = coefficients[:, :, : self.block].reshape(self.groups, self.parts, self.width, self.group)
        padded = blocks.transpose(0, 3, 1, 2).reshape(self.groups * self.group, self.parts * self.width)
        return np.ascontiguousarray(padded[: self.rows, : self.columns])


@dataclass(frozen=True)
class Order:
    """In which order products hold the values ``[rows, outputs]``: by group of rows, product, output of it, row of the group."""

    rows: int
    outputs: int
    group: int
    per_product: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the values."""
        return self.rows, self.outputs

    @property
    def groups(self) -> int:
        """Groups of rows; each has products of its own."""
        return -(-self.rows // self.group)

    @property
    def products(self) -> int:
        """Products of one group."""
        return -(-self.outputs // self.per_product)

    def cells(self) -> Iterator[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]]:
        """For each group, for each of its products, row and output of its values."""
        for first in range(0, self.rows, self.group):
            rows = np.arange(first, min(first + self.group, self.rows))
            yield [
                (np.tile(rows, len(outputs)), np.repeat(outputs, len(rows)))
                for outputs in np.split(
                    np.arange(self.outputs), range(self.per_product, self.outputs, self.per_product)
                )
            ]

    def places(self, spacing: int) -> list[list[npt.NDArray[np.uint32]]]:
        """At which coefficient of its product each value is found, by group and product."""
        return [
            [(output % self.per_product * spacing + row % self.group).astype(np.uint32) for row, output in products]
            for products in self.cells()
        ]

    def scatter(self, values: Floats) -> Floats:
        """The values in this order as ``[rows, outputs]``."""
        out = np.empty((self.rows, self.outputs))
        at = 0
        for products in self.cells():
            for row, output in products:
                out[row, output] = values[at : at + len(row)]
                at += len(row)
        return out

    def gather(self, values: Floats) -> list[list[Floats]]:
        """Values ``[rows, outputs]`` by group and product."""
        return [[values[row, output] for row, output in products] for products in self.cells()]


def weights(layout: Layout, matrix: npt.NDArray[np.int64], spacing: int, per_product: int) -> npt.NDArray[np.int64]:
    """Weight polynomials ``[products, parts, degree]`` of a map ``[rows, columns, outputs]`` of numbers of one group.

    With one row they map the first row's numbers, and every other row's at the places beside them.
    """
    rows, columns, outputs = matrix.shape
    products = -(-outputs // per_product)
    padded = np.zeros((rows, layout.parts * layout.width, products * per_product), np.int64)
    padded[:, :columns, :outputs] = matrix
    # [rows, parts, width, products, per_product] -> [products, parts, per_product, width, rows]
    blocks = padded.reshape(rows, layout.parts, layout.width, products, per_product).transpose(3, 1, 4, 2, 0)
    at = np.arange(layout.width)[:, None] * layout.group + np.arange(rows)
    exponents = np.arange(per_product)[:, None] * spacing - at.ravel()
    out = np.zeros((products, layout.parts, layout.degree), np.int64)
    _add(out, exponents.ravel(), blocks.reshape(products, layout.parts, -1))
    return out


def _add(out: npt.NDArray[np.int64], exponents: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
    """Put values at exponents between -degree and degree, no two of which are the same coefficient; x^degree = -1."""
    degree = out.shape[-1]
    negative = exponents < 0
    out[:, :, np.where(negative, exponents + degree, exponents)] = np.where(negative, -values, values)
