"""Vectors."""

from __future__ import annotations

from typing import Any, NoReturn

from hesplit_native.tenseal.enc_context import SecretKey
from hesplit_native.tenseal.layout import Floats
from hesplit_native.tenseal.tensors.encrypted import Encrypted
from hesplit_native.tenseal.tensors.plaintensor import as_array


class CKKSVector(Encrypted):
    """A vector of ciphertexts.

    Parameters
    ----------
    context
        Whose key it is encrypted under.
    vector
        A list, array, torch tensor or PlainTensor of one axis, of numbers between -65536 and 65536.
    scale
        Instead of the context's global scale.
    """

    _kind = "vector"

    def __init__(self, context: Any = None, vector: Any = None, scale: float | None = None) -> None:
        values = as_array(vector)
        if values.ndim != 1:
            raise ValueError("can only encrypt a vector")
        super().__init__(context, values, scale, batch=False)

    def _operand(self, other: Any) -> Floats:
        values = self._plain(other)
        if values.ndim and values.shape != self._sum.shape:
            raise ValueError(
                f"can only operate with a vector of this one's size, {self.size()}, or a number; not with shape {list(values.shape)}"
            )
        return values

    def size(self) -> int:
        """How many numbers it has."""
        return self._sum.size

    def decrypt(self, secret_key: SecretKey | None = None) -> list[float]:
        """The numbers."""
        return list(self._decrypted(secret_key).ravel().tolist())

    def sum(self, axis: int = 0) -> CKKSVector:
        """The sum of its numbers, as a vector of one."""
        return self._new(self._sum.summed(axis).reshaped((1,)))

    def sum_(self, axis: int = 0) -> CKKSVector:
        """The sum in place."""
        return self._set(self.sum(axis)._sum)

    def dot(self, other: Any) -> CKKSVector:
        """The sum of products with a plain vector, as a vector of one."""
        values = self._operand(other)
        if values.ndim != 1:
            raise ValueError("can only operate with a vector")
        return self.mm(values[:, None])

    def dot_(self, other: Any) -> CKKSVector:
        """`dot` in place."""
        return self._set(self.dot(other)._sum)

    def mm(self, matrix: Any) -> CKKSVector:
        """Times a plain matrix ``[size, c]``."""
        return self._new(self._product(matrix))

    def mm_(self, matrix: Any) -> CKKSVector:
        """The product in place."""
        return self._set(self._product(matrix))

    matmul = __matmul__ = mm
    matmul_ = __imatmul__ = mm_

    def conv2d_im2col(self, *arguments: Any, **options: Any) -> NoReturn:
        """Not here."""
        raise NotImplementedError("convolutions of ciphertexts are not here")

    def enc_matmul_plain(self, *arguments: Any, **options: Any) -> NoReturn:
        """Not here."""
        raise NotImplementedError(
            "an encrypted matrix in a CKKSVector is not here; encrypt it as a CKKSTensor and use mm"
        )

    conv2d_im2col_ = conv2d_im2col
    enc_matmul_plain_ = enc_matmul_plain

    @classmethod
    def pack_vectors(cls, vectors: Any) -> NoReturn:
        """Not here."""
        raise NotImplementedError("packing vectors of ciphertexts is not here")
