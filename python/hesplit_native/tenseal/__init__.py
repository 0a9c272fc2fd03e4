"""What callers of TenSEAL's CKKS tensors use, on this package's engine: ``import hesplit_native.tenseal as ts``.

Contexts, tensors and vectors with TenSEAL's names, arguments and shapes (0.3.18). Numbers are packed densely instead of one to a
ciphertext, plain operations are done in the clear until a result is decrypted or serialized, and scales stay right. Bytes are
this package's own: both ends have to import it. What is not here raises NotImplementedError and says what it is: products of two
ciphertexts, BFV, convolutions. `docs/tenseal.md` compares the two.

Decrypted numbers carry the noise of their ciphertexts here as in TenSEAL: who sees both, or what a client computes of both, may
learn the key (`docs/security.md`). The protocols of `hesplit_native.nn.SplitLinear` flood what they release.
"""

from __future__ import annotations

from typing import Any, NoReturn

from hesplit_native.tenseal import enc_context, tensors
from hesplit_native.tenseal.enc_context import ENCRYPTION_TYPE, SCHEME_TYPE, Context
from hesplit_native.tenseal.tensors import CKKSTensor, CKKSVector, PlainTensor

#: The version of TenSEAL whose calls these are.
__version__ = "0.3.18"

context = Context
plain_tensor = PlainTensor
ckks_tensor = CKKSTensor
ckks_vector = CKKSVector


def context_from(data: bytes, n_threads: int | None = None) -> Context:
    """`Context.load`."""
    return Context.load(data, n_threads)


def ckks_tensor_from(context: Context, data: bytes) -> CKKSTensor:
    """`CKKSTensor.load`."""
    return CKKSTensor.load(context, data)


def ckks_vector_from(context: Context, data: bytes) -> CKKSVector:
    """`CKKSVector.load`."""
    return CKKSVector.load(context, data)


def lazy_ckks_tensor_from(data: bytes) -> CKKSTensor:
    """`CKKSTensor.lazy_load`."""
    return CKKSTensor.lazy_load(data)


def lazy_ckks_vector_from(data: bytes) -> CKKSVector:
    """`CKKSVector.lazy_load`."""
    return CKKSVector.lazy_load(data)


def _bfv(*arguments: Any, **options: Any) -> NoReturn:
    """Not here."""
    raise NotImplementedError("BFV is not here: hesplit_native.tenseal computes with CKKS only")


bfv_vector = bfv_tensor = bfv_vector_from = bfv_tensor_from = _bfv
lazy_bfv_vector_from = lazy_bfv_tensor_from = BFVVector = BFVTensor = _bfv


def im2col_encoding(*arguments: Any, **options: Any) -> NoReturn:
    """Not here."""
    raise NotImplementedError("convolutions of ciphertexts are not here")


def enc_matmul_encoding(*arguments: Any, **options: Any) -> NoReturn:
    """Not here."""
    raise NotImplementedError("an encrypted matrix in a CKKSVector is not here; encrypt it as a CKKSTensor and use mm")


__all__ = [
    "ENCRYPTION_TYPE",
    "SCHEME_TYPE",
    "CKKSTensor",
    "CKKSVector",
    "Context",
    "PlainTensor",
    "__version__",
    "ckks_tensor",
    "ckks_tensor_from",
    "ckks_vector",
    "ckks_vector_from",
    "context",
    "context_from",
    "enc_context",
    "enc_matmul_encoding",
    "im2col_encoding",
    "lazy_ckks_tensor_from",
    "lazy_ckks_vector_from",
    "plain_tensor",
    "tensors",
]
