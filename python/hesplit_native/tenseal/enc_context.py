"""Contexts: the keys of a client, or what a server needs of them."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from hesplit_native import _core
from hesplit_native.errors import KeyMismatchError, WireError
from hesplit_native.tenseal import wire
from hesplit_native.tenseal.sources import PARAMETERS, Key

# What SEAL, and so TenSEAL, takes at most by ring degree, in bits. These are refused as there, although the ring that is computed
# in is another one (`sources.PARAMETERS`).
_SEAL_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
_MAX_PRIMES = 64


class SCHEME_TYPE(enum.Enum):
    """Schemes of TenSEAL; CKKS is the one that is here."""

    NONE = 0
    BFV = 1
    CKKS = 2


class ENCRYPTION_TYPE(enum.Enum):
    """Whether a context without its secret key can encrypt."""

    ASYMMETRIC = 0
    SYMMETRIC = 1


class SecretKey:
    """A context's secret key, as `decrypt` of a tensor takes it."""

    def __init__(self, native: _core.SecretKey) -> None:
        self._native = native

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a secret key cannot be pickled; Context.serialize(save_secret_key=True) writes it")


class PublicKey:
    """A context's public key."""

    def __init__(self, native: _core.PublicKey) -> None:
        self._native = native


class Context:
    """Keys, and the scale that tensors have unless they are given another.

    Parameters
    ----------
    scheme
        ``SCHEME_TYPE.CKKS``.
    poly_modulus_degree, coeff_mod_bit_sizes
        Checked as SEAL checks them, and otherwise a statement of what precision and depth the caller expects: every tensor is
        computed in one ring of degree 4096 with a modulus of 90 bits, which is 128-bit secure (2024 guidelines).
    plain_modulus
        None or, as in scripts for old versions, any number: CKKS has none.
    encryption_type
        With ``SYMMETRIC`` there is no public key.
    n_threads
        Accepted; `hesplit_native.set_num_threads` says how many there are.

    Raises
    ------
    NotImplementedError
        For BFV.
    ValueError
        For parameters that TenSEAL does not take.
    """

    def __init__(
        self,
        scheme: SCHEME_TYPE | None = None,
        poly_modulus_degree: int | None = None,
        plain_modulus: int | None = None,
        coeff_mod_bit_sizes: Sequence[int] = (),
        encryption_type: ENCRYPTION_TYPE = ENCRYPTION_TYPE.ASYMMETRIC,
        n_threads: int | None = None,
    ) -> None:
        if scheme is SCHEME_TYPE.BFV:
            raise NotImplementedError("BFV is not here: hesplit_native.tenseal computes with CKKS only")
        if scheme is not SCHEME_TYPE.CKKS:
            raise ValueError("Invalid scheme type, use SCHEME_TYPE.CKKS")
        bits = _checked(poly_modulus_degree, coeff_mod_bit_sizes)
        secret = _core.SecretKey.generate(PARAMETERS._native)
        public = secret.public_key() if ENCRYPTION_TYPE(encryption_type) is ENCRYPTION_TYPE.ASYMMETRIC else None
        self._set(int(poly_modulus_degree or 0), bits, None, secret, public)
        self._relin = True  # as in TenSEAL, which makes them with the context

    def _set(
        self,
        degree: int,
        bits: tuple[int, ...],
        scale: float | None,
        secret: _core.SecretKey | None,
        public: _core.PublicKey | None,
    ) -> None:
        self._degree, self._bits = degree, bits
        self._scale = scale
        self._secret, self._public = secret, public
        self._galois = self._relin = False
        # TenSEAL's switches for what is done to ciphertexts in between; nothing is, so they change nothing.
        self.auto_relin = self.auto_rescale = self.auto_mod_switch = True

    @property
    def global_scale(self) -> float:
        """The scale of tensors; the rounding of what is decrypted has a standard deviation of at most its reciprocal."""
        if self._scale is None:
            raise ValueError("no global scale")
        return self._scale

    @global_scale.setter
    def global_scale(self, value: float) -> None:
        self._scale = checked_scale(value)

    def key(self) -> Key:
        """What tensors are encrypted with: the secret key where it is there, since that takes half the bytes."""
        if self._secret is not None:
            return self._secret
        if self._public is None:
            raise ValueError(
                "this context has no key to encrypt with: it was made public, of ENCRYPTION_TYPE.SYMMETRIC"
            )
        return self._public

    def secret_key(self) -> SecretKey:
        """The secret key."""
        if self._secret is None:
            raise ValueError("the current context doesn't hold a secret_key")
        return SecretKey(self._secret)

    def public_key(self) -> PublicKey:
        """The public key."""
        if self._public is None:
            raise ValueError("the current context doesn't hold a public_key")
        return PublicKey(self._public)

    def has_secret_key(self) -> bool:
        """Whether it decrypts."""
        return self._secret is not None

    def has_public_key(self) -> bool:
        """Whether others can encrypt with it."""
        return self._public is not None

    def is_private(self) -> bool:
        """Whether it holds the secret key."""
        return self._secret is not None

    def is_public(self) -> bool:
        """Whether it does not."""
        return self._secret is None

    def generate_galois_keys(self, secret_key: SecretKey | None = None) -> None:
        """Accepted: no operation here needs them."""
        self._generate(secret_key)
        self._galois = True

    def generate_relin_keys(self, secret_key: SecretKey | None = None) -> None:
        """Accepted: no operation here needs them."""
        self._generate(secret_key)
        self._relin = True

    def _generate(self, secret_key: SecretKey | None) -> None:
        if secret_key is not None and not isinstance(secret_key, SecretKey):
            raise TypeError(f"incorrect type: {type(secret_key)} != SecretKey")
        if secret_key is None and self._secret is None:
            raise ValueError("the current context doesn't hold a secret_key, please provide one as argument")

    def has_galois_keys(self) -> bool:
        """Whether generate_galois_keys was called."""
        return self._galois

    def has_relin_keys(self) -> bool:
        """Whether the context was made or read with them: no operation needs them."""
        return self._relin

    def make_context_public(self, generate_galois_keys: bool = False, generate_relin_keys: bool = False) -> None:
        """Drop the secret key."""
        self._galois |= generate_galois_keys
        self._relin |= generate_relin_keys
        self._secret = None

    def copy(self) -> Context:
        """Another context with the same keys."""
        other = Context.__new__(Context)
        vars(other).update(vars(self))
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Context:
        return self.copy()  # keys do not change

    def serialize(
        self,
        save_public_key: bool = True,
        save_secret_key: bool = False,
        save_galois_keys: bool = True,
        save_relin_keys: bool = True,
    ) -> bytes:
        """As bytes, with the secret key only where that is asked for."""
        header = {
            "kind": "context",
            "poly_modulus_degree": self._degree,
            "coeff_mod_bit_sizes": self._bits,
            "global_scale": self._scale,
            "galois_keys": self._galois and save_galois_keys,
            "relin_keys": self._relin and save_relin_keys,
            "public": save_public_key and self._public is not None,
            "secret": save_secret_key and self._secret is not None,
        }
        blobs = []
        if header["public"] and self._public is not None:
            blobs.append(self._public.to_bytes())
        if header["secret"] and self._secret is not None:
            blobs.append(bytes(self._secret.to_bytearray()))
        return wire.write(header, blobs)

    @classmethod
    def load(cls, data: bytes, n_threads: int | None = None) -> Context:
        """What `serialize` wrote.

        Raises
        ------
        WireError
            For anything else, a context of TenSEAL itself included.
        """
        fields, blobs = wire.read(data, "context")
        degree = fields.count("poly_modulus_degree", max(_SEAL_BITS))
        given = fields.counts("coeff_mod_bit_sizes", 60, _MAX_PRIMES)
        scale = None if fields.missing("global_scale") else fields.number("global_scale")
        try:
            bits = _checked(degree, given)
            scale = None if scale is None else checked_scale(scale)
        except ValueError as error:
            raise WireError(f"a context with impossible parameters: {error}") from error
        has_public, has_secret = fields.flag("public"), fields.flag("secret")
        if len(blobs) != has_public + has_secret:
            raise WireError("a context with another number of keys than it says")
        public = _core.PublicKey.from_bytes(blobs[0]) if has_public else None
        secret = _core.SecretKey.from_bytes(blobs[-1]) if has_secret else None
        for key in (public, secret):
            if key is not None and key.parameters.hash != PARAMETERS._native.hash:
                raise KeyMismatchError("a context with keys of other parameters")
        if public is not None and secret is not None and public.id != secret.id:
            raise KeyMismatchError("a context whose public key belongs to another secret key")
        context = cls.__new__(cls)
        context._set(degree, bits, scale, secret, public)
        context._galois, context._relin = fields.flag("galois_keys"), fields.flag("relin_keys")
        return context

    def galois_keys(self) -> NoReturn:
        """Not here."""
        raise NotImplementedError("there are no Galois keys here: no operation needs them")

    def relin_keys(self) -> NoReturn:
        """Not here."""
        raise NotImplementedError("there are no relinearization keys here: no operation needs them")

    def seal_context(self) -> NoReturn:
        """Not here."""
        raise NotImplementedError("there is no SEALContext behind this context")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a context cannot be pickled; use Context.serialize() and Context.load()")

    def __repr__(self) -> str:
        kind = "private" if self.is_private() else "public"
        return f"Context({kind}, poly_modulus_degree={self._degree}, coeff_mod_bit_sizes={list(self._bits)})"


def checked_scale(value: float) -> float:
    """A scale that can be used."""
    scale = float(value)
    if not (math.isfinite(scale) and 1 < scale <= 2.0**60):
        raise ValueError(f"a scale is between 1 and 2^60, got {value}")
    return scale


def _checked(degree: int | None, bits: Sequence[Any]) -> tuple[int, ...]:
    """The bits as numbers; ValueError where TenSEAL refuses them."""
    limit = _SEAL_BITS.get(degree or 0)
    if limit is None:
        raise ValueError(f"poly_modulus_degree must be one of {', '.join(map(str, _SEAL_BITS))}, got {degree}")
    if not 1 <= len(bits) <= _MAX_PRIMES or any(not isinstance(n, int | np.integer) or not 2 <= n <= 60 for n in bits):
        raise ValueError(f"coeff_mod_bit_sizes must be 1 to {_MAX_PRIMES} numbers from 2 to 60, got {list(bits)}")
    if sum(bits) > limit:
        raise ValueError(
            f"encryption parameters are not set correctly: coeff_mod_bit_sizes sum to {sum(bits)} bits, and SEAL takes at most "
            f"{limit} with poly_modulus_degree {degree}"
        )
    return tuple(int(n) for n in bits)
