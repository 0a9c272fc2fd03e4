"""One encrypted tensor under a linear map, which is kept in the clear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import RangeError
from hesplit_native.tenseal.layout import Floats, Layout
from hesplit_native.tenseal.sources import Fresh, Product

Indices = npt.NDArray[np.int64]

#: Numbers of a map that is written out, at most: 256 MB.
MAX_MAP = 1 << 25
# Larger factors than this cannot be written, and smaller ones of a sum would vanish beside them.
_LARGEST_FACTOR = 2.0**1000


@dataclass(frozen=True)
class Term:
    """One encrypted tensor under a linear map.

    `matrix` None is the identity. A matrix ``[columns, outputs]`` maps every row, one ``[rows, columns, outputs]`` all numbers
    together. All are times `factor`.
    """

    source: Fresh | Product
    factor: float = 1.0
    matrix: Floats | None = None

    @property
    def maps_rows(self) -> bool:
        """Whether every row has outputs of its own, all by the same map."""
        return self.matrix is None or self.matrix.ndim == 2

    def layout(self, what: str) -> Layout:
        """Where the numbers are that maps start from.

        Raises
        ------
        NotImplementedError
            `what` was to be done to a product.
        """
        if not isinstance(self.source, Fresh):
            raise NotImplementedError(
                f"{what} on the result of a product that was serialized: that takes more depth than this engine has. Do it before "
                "the result is serialized, or decrypt it first"
            )
        return self.source.layout

    def outputs(self, layout: Layout) -> int:
        """Outputs of a row, or of all rows together."""
        return layout.columns if self.matrix is None else self.matrix.shape[-1]

    def written_out(self, layout: Layout, outputs: Indices | None = None) -> Floats:
        """The matrix without the factor, also of the identity; with `outputs` their columns only."""
        if self.matrix is not None:
            if outputs is None:
                return self.matrix
            check_map(self.matrix.size // self.matrix.shape[-1] * len(outputs))
            return self.matrix[..., outputs]
        outputs = np.arange(layout.columns) if outputs is None else outputs
        check_map(layout.columns * len(outputs))
        found = np.zeros((layout.columns, len(outputs)))
        found[outputs, np.arange(len(outputs))] = 1.0
        return found

    def of_all(self, layout: Layout, outputs: Indices | None = None) -> Floats:
        """The same as a map of all numbers together, ``[rows, columns, outputs]``: outputs of the first row, then of the next."""
        if not self.maps_rows:
            return self.written_out(layout, outputs)
        each = self.outputs(layout)
        outputs = np.arange(layout.rows * each) if outputs is None else outputs
        check_map(layout.rows * layout.columns * len(outputs))
        row, of_row = np.divmod(outputs, each)
        found = np.zeros((layout.rows, layout.columns, len(outputs)))
        found[row, :, np.arange(len(outputs))] = self.written_out(layout, of_row).T
        return found


def check_map(numbers: int) -> None:
    """NotImplementedError for a map of more than `MAX_MAP` numbers, before it is written out."""
    if numbers > MAX_MAP:
        raise NotImplementedError(
            f"this operation on a tensor of ciphertexts is a linear map of {numbers} numbers, of which {MAX_MAP} are supported; "
            "encrypt it in smaller parts"
        )


def checked_factor(factor: float) -> float:
    """RangeError for a factor that is too large."""
    if not abs(factor) <= _LARGEST_FACTOR:
        raise RangeError("the product of a tensor's plain factors is too large")
    return factor
