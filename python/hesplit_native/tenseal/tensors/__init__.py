"""Tensors of ciphertexts and plain ones."""

from hesplit_native.tenseal.tensors.ckkstensor import CKKSTensor
from hesplit_native.tenseal.tensors.ckksvector import CKKSVector
from hesplit_native.tenseal.tensors.plaintensor import PlainTensor

__all__ = ["CKKSTensor", "CKKSVector", "PlainTensor"]
