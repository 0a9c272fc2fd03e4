"""CKKS parameters and the planner that recommends them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from hesplit_native import _core
from hesplit_native.choices import Attacker, Packing, Security
from hesplit_native.errors import ParameterError, RangeError

# What trained networks on MIT-BIH stay within (docs/precision.md); a sample beyond is clipped and counted.
ACTIVATION_BOUND = 64.0
ACTIVATION_NORM = 128.0
WEIGHT_NORM = 16.0
ERROR_BOUND = 1e-3

#: The link that layouts are made for unless another one is named, in bits per second.
GIGABIT = 1e9

# With flooding: the largest standard deviation of a released logit's noise for rows of `weight_norm`, and what is precise
# enough beside it. Accuracy is measured to stay within 0.3 points (README).
FLOODING_DEVIATION = 0.5
FLOODED_ERROR_BOUND = 1.25

#: Statistical security of flooded releases, s in Li et al. 2022.
STATISTICAL_BITS = 30

#: Private weights: the statistical distance of every number of a reply from one that only the logit decides is below 2^-40.
PRIVATE_BITS = 40

# Sealed weights: how far logits may be off, and how many steps the server's copy of the weights may be behind, and one.
SEALED_ERROR_BOUND = 0.05
SEALED_UPDATES = 4

# Error bounds that published sets are tried with: at their own scale, and those that need another.
_PUBLISHED_BOUNDS = tuple(1e-3 * 2**k for k in range(8))
_RESCALED_BOUNDS = tuple(0.128 * 2 ** (k / 4) for k in range(25))


@dataclass(frozen=True)
class Parameters:
    """What client and server must agree on.

    Parameters
    ----------
    ring_degree
        N, a power of two from 1024 to 32768.
    modulus_bits
        Sizes of the primes of the modulus in bits. The last one is the key-switching prime, but in ``"blocks"``, and in ``"slots"``
        where weights are private.
    scale
        The factor by which activations are multiplied before they are rounded.
    packing
        ``"blocks"`` (coefficients, fast), ``"merged"`` (the same with short replies for few rows and many outputs, which take
        evaluation keys) or ``"slots"`` (SIMD slots, what the papers use).
    security
        ``"standard"`` refuses what is below 128 bits against classical computers by the 2024 guidelines, ``"quantum"`` what is
        below 128 bits against quantum computers by the same; ``"paper"`` runs published sets that are below.
    activation_bound, activation_norm
        Largest |activation| and largest l2 norm of one sample. Samples beyond are clipped and counted.
    error_bound
        Absolute bound on ``decrypted - exact`` for every logit, except with probability 2**-39 each. The server refuses
        weights with which it could not be kept.
    batch_size
        The batch that slots and merged blocks are laid out for; other sizes work too. Sealed weights are laid out for it.
    releases
        How many decryptions may be released under one key, each flooded with noise (docs/security.md); 0: released
        decryptions are not flooded.
    updates
        After how many updates, up to 32768, sealed weights are sent anew (docs/protocols.md); 0: not for sealed weights.
    statistical_bits
        s, from 20 to 60: the statistical security of all releases under one key, in the sense of Li et al. (docs/security.md). Ten
        bits more take five bits of modulus.
    private_bits
        lambda, 0 or from 20 to 60: every number of a reply is within a statistical distance of 2**-lambda of one that says no more
        of the server's weights than the logit does (docs/security.md); 0: replies tell more. A bit more takes a bit of modulus.
    weight_norm
        With `private_bits` the largest l2 norm of a row of the weight, which the scales of replies follow from; 0 without.

    Raises
    ------
    ParameterError
        When the combination cannot work or is below the 128 bits of its `security`.
    """

    ring_degree: int
    modulus_bits: Sequence[int]
    scale: float
    packing: Packing = "blocks"
    security: Security = "standard"
    activation_bound: float = ACTIVATION_BOUND
    activation_norm: float = ACTIVATION_NORM
    error_bound: float = ERROR_BOUND
    batch_size: int = 1
    releases: int = 0
    updates: int = 0
    statistical_bits: int = STATISTICAL_BITS
    private_bits: int = 0
    weight_norm: float = 0.0
    _native: _core.Parameters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modulus_bits", tuple(int(bits) for bits in self.modulus_bits))
        for f in fields(self):
            value = getattr(self, f.name, None)
            if isinstance(value, np.generic):  # which JSON does not take
                object.__setattr__(self, f.name, value.item())
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        try:
            native = _core.Parameters(**values)
        except TypeError as error:
            raise ParameterError(f"parameters of the wrong type: {values}") from error
        object.__setattr__(self, "_native", native)

    @classmethod
    def recommend(
        cls,
        *,
        in_features: int,
        out_features: int,
        batch_size: int,
        packing: Packing = "blocks",
        activation_bound: float = ACTIVATION_BOUND,
        activation_norm: float | None = None,
        weight_norm: float = WEIGHT_NORM,
        error_bound: float | None = None,
        releases: int = 0,
        link: float | None = None,
        security: Attacker = "standard",
        statistical_bits: int = STATISTICAL_BITS,
        private_weights: bool = False,
        private_bits: int = PRIVATE_BITS,
        logit_noise: float | None = None,
    ) -> Parameters:
        """The 128-bit set that moves the fewest bytes per batch and keeps the error bound.

        With ``link``, bits per second, the one that takes the least time by the cost model (not with packing ``"slots"``).

        ``weight_norm`` is the largest l2 norm of a row of the weight that must fit; ``activation_norm`` defaults to
        that of activations with a root mean square of ``activation_bound / 8``. With ``releases`` the noise that floods
        a logit stays below a standard deviation of `FLOODING_DEVIATION`, and the error bound defaults to
        `FLOODED_ERROR_BOUND` instead of `ERROR_BOUND`: what is finer drowns. ``security`` says against which computers it has 128
        bits, ``statistical_bits`` how well releases are flooded.

        With ``private_weights`` replies hide the weights in either packing, as well as ``private_bits`` says, and batches of any
        size up to ``batch_size`` keep the bound. What floods the logits is part of the error; ``logit_noise`` is the largest
        standard deviation that it may have (`estimate` says which it has), and the error bound then defaults to twice that.

        Raises
        ------
        ParameterError
            When no supported ring holds these ranges and precision.
        """
        if activation_norm is None:
            activation_norm = max(activation_bound, activation_bound / 8 * math.sqrt(max(in_features, 1)))
        if logit_noise is not None and not (private_weights and logit_noise > 0):
            raise ParameterError(f"logit_noise is positive, and that of private_weights=True; got {logit_noise}")
        if error_bound is None:
            error_bound = FLOODED_ERROR_BOUND if releases else 2 * logit_noise if logit_noise else ERROR_BOUND
        best: Parameters | None = None
        least: Parameters | None = None
        best_cost = (math.inf,) * 4
        for candidate, step in feasible(
            in_features, out_features, batch_size, packing=packing, activation_bound=activation_bound,
            activation_norm=activation_norm, weight_norm=weight_norm, error_bound=error_bound, releases=releases,
            link=link or GIGABIT, security=security, statistical_bits=statistical_bits,
            private_bits=private_bits if private_weights else 0,
        ):  # fmt: skip
            if logit_noise is not None and step["logit_noise"] > logit_noise:
                continue
            least = least or candidate
            if (
                candidate.ring_degree > least.ring_degree
                or candidate.total_bits > least.total_bits + _SHORTER_REPLIES[packing]
            ):
                break  # more only adds bytes and work
            bytes_moved = step["request_bytes"] + step["reply_bytes"]
            seconds = sum(step.get(f"{part}_seconds", 0.0) for part in ("client", "server", "link"))
            cost = (
                seconds if link and packing != "slots" else bytes_moved,
                step.get("server_seconds", 0.0),
                step["key_bytes"],
                step["error"],
            )
            if cost < best_cost:
                best, best_cost = candidate, cost
        if best is None:
            raise ParameterError(
                f"no parameter set of 128 bits ({_AGAINST[security]}) keeps an error bound of {error_bound:g} for {in_features} -> "
                f"{out_features} with "
                f"|activations| <= {activation_bound:g} (l2 norm {activation_norm:g}) and weight rows of l2 norm "
                f"{weight_norm:g}; raise error_bound or lower the ranges"
            )
        return best

    @classmethod
    def published(
        cls,
        name: str,
        *,
        in_features: int,
        out_features: int,
        batch_size: int,
        activation_bound: float = ACTIVATION_BOUND,
        activation_norm: float | None = None,
        weight_norm: float = WEIGHT_NORM,
    ) -> Parameters:
        """A published set (`hesplit_native.published.PARAMETER_SETS`) with the smallest error bound that it keeps for these ranges.

        The published scale is that of the activations; weights are encoded at whatever scale fills the modulus, instead of
        the published one, so that no logit within the ranges wraps around and scales stay exact. A set that cannot hold the
        ranges so to better than 0.128 gets another scale for the activations too, the one with the least error.

        Raises
        ------
        ParameterError
            For another name, or when the set cannot hold these ranges at any useful precision; with the range that it can.
        """
        from hesplit_native.layer.published import PARAMETER_SETS

        if name not in PARAMETER_SETS:
            raise ParameterError(f"unknown parameter set {name!r}; there are {', '.join(PARAMETER_SETS)}")
        chosen = PARAMETER_SETS[name]
        if activation_norm is None:
            activation_norm = max(activation_bound, activation_bound / 8 * math.sqrt(max(in_features, 1)))
        shape = (in_features, out_features, batch_size)
        for published_scale in (True, False):
            for error_bound in _PUBLISHED_BOUNDS if published_scale else _RESCALED_BOUNDS:
                candidate = cls(
                    ring_degree=chosen.ring_degree,
                    modulus_bits=chosen.modulus_bits,
                    scale=chosen.scale,
                    packing="slots",
                    security=chosen.security,
                    activation_bound=activation_bound,
                    activation_norm=activation_norm,
                    error_bound=error_bound,
                    batch_size=batch_size,
                )
                if not published_scale:
                    scale = candidate._native.best_scale(*shape, weight_norm, byte_nanoseconds(GIGABIT))
                    if scale == 0:
                        continue
                    candidate = replace(candidate, scale=scale)
                try:
                    candidate.estimate(*shape, weight_norm=weight_norm)
                except RangeError:
                    continue
                return candidate
        raise ParameterError(
            f"the set {name} cannot hold logits up to {activation_norm * weight_norm:g} to better than +-8: its modulus has "
            f"{sum(chosen.modulus_bits[:-1])} bits for activations, weights and range together. Lower activation_norm or weight_norm"
        )

    @classmethod
    def recommend_sealed(
        cls,
        *,
        in_features: int,
        out_features: int,
        batch_size: int,
        activation_bound: float = ACTIVATION_BOUND,
        activation_norm: float | None = None,
        weight_norm: float = WEIGHT_NORM,
        error_bound: float = SEALED_ERROR_BOUND,
        updates: int = SEALED_UPDATES,
        security: Attacker = "standard",
    ) -> Parameters:
        """The 128-bit set for sealed weights that moves the fewest bytes per training step.

        Weights are sent every ``updates`` steps; what they lack in between the client adds itself.

        Raises
        ------
        ParameterError
            When no supported ring holds these ranges and precision.
        """
        if activation_norm is None:
            activation_norm = max(activation_bound, activation_bound / 8 * math.sqrt(max(in_features, 1)))
        best: Parameters | None = None
        best_cost = (math.inf, math.inf)
        for ring_degree, modulus_bits in _candidates("blocks", security):
            for scale_bits in range(12, 40):
                candidate = cls(
                    ring_degree=ring_degree,
                    modulus_bits=modulus_bits,
                    scale=2.0**scale_bits,
                    security=security,
                    activation_bound=activation_bound,
                    activation_norm=activation_norm,
                    error_bound=error_bound,
                    batch_size=batch_size,
                    updates=updates,
                )
                step = candidate._native.estimate_sealed(in_features, out_features, weight_norm)
                if step is None:
                    continue
                cost = (step["request_bytes"] + step["update_bytes"] + step["reply_bytes"], step["error"])
                if cost < best_cost:
                    best, best_cost = candidate, cost
            if best is not None and ring_degree == 2048 and sum(modulus_bits) == _core.max_modulus_bits(2048, security):
                break  # a larger ring only adds bytes
        if best is None:
            raise ParameterError(
                f"no parameter set of 128 bits ({_AGAINST[security]}) keeps sealed logits of {in_features} -> {out_features} to "
                f"{error_bound:g}; raise error_bound, or lower the ranges"
            )
        return best

    def estimate(
        self,
        in_features: int,
        out_features: int,
        batch_size: int,
        *,
        weight_norm: float | None = None,
        link: float = GIGABIT,
    ) -> dict[str, Any]:
        """Error, reply bits, layout and bytes of one batch for weight rows of that l2 norm (the agreed one, else `WEIGHT_NORM`).

        With private weights also the deviation of the flood in a logit, ``logit_noise``, and ``spread_bits``, how far the server's
        randomness is spread against public keys that are not well made (docs/security.md).

        In blocks also the seconds of one core at client and server, and on a link of so many bits per second, by a model whose
        constants were measured on AVX-512 IFMA (docs/benchmarks.md).

        Raises
        ------
        RangeError
            When such weights cannot be served within the error bound.
        """
        if weight_norm is None:
            weight_norm = self.weight_norm or WEIGHT_NORM
        return self._native.estimate(in_features, out_features, batch_size, weight_norm, byte_nanoseconds(link))

    @property
    def hash(self) -> str:
        """What travels with every message, as 32 hexadecimal digits."""
        return self._native.hash.hex()

    @property
    def total_bits(self) -> int:
        """log2 of the whole modulus, key-switching prime included, as the security check counts it."""
        return sum(self.modulus_bits)

    @property
    def max_bits(self) -> int:
        """The largest `total_bits` with 128 bits at this ring degree (2024 guidelines, ternary secret).

        Against quantum computers where `security` says so, else against classical ones.
        """
        return _core.max_modulus_bits(self.ring_degree, self.security)

    @property
    def strength(self) -> str:
        """Its computational security in words."""
        return describe_security(self.security)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return values | {"modulus_bits": list(self.modulus_bits), "hash": self.hash}

    def to_bytes(self) -> bytes:
        """The canonical bytes, of which `hash` is the hash."""
        return self._native.to_bytes()

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Copies and pickles are made of the canonical bytes."""
        return type(self).from_bytes, (self.to_bytes(),)

    @classmethod
    def from_bytes(cls, data: bytes) -> Parameters:
        """The inverse of `to_bytes`. Raises WireError on anything else."""
        return cls._wrap(_core.Parameters.from_bytes(data))

    @classmethod
    def _wrap(cls, native: _core.Parameters) -> Parameters:
        return cls(**{f.name: getattr(native, f.name) for f in fields(cls) if f.init})


def byte_nanoseconds(link: float) -> float:
    """What a byte takes on a link of so many bits per second."""
    if not 1e3 <= link <= 1e15:
        raise ParameterError(f"a link has between 1e3 and 1e15 bits per second, got {link}")
    return 8e9 / link


def feasible(
    in_features: int,
    out_features: int,
    batch_size: int,
    *,
    packing: Packing,
    activation_bound: float,
    activation_norm: float,
    weight_norm: float,
    error_bound: float,
    releases: int,
    link: float,
    security: Attacker = "standard",
    statistical_bits: int = STATISTICAL_BITS,
    private_bits: int = 0,
) -> Iterator[tuple[Parameters, dict[str, Any]]]:
    """Every set worth trying that keeps the error bound, at its best scale, with `Parameters.estimate` of it."""
    shape = (in_features, out_features, batch_size)
    for ring_degree, modulus_bits in _candidates(packing, security, traced=packing == "slots" and private_bits > 0):
        candidate = Parameters(
            ring_degree=ring_degree,
            modulus_bits=modulus_bits,
            scale=2.0**20,
            packing=packing,
            security=security,
            activation_bound=activation_bound,
            activation_norm=activation_norm,
            error_bound=error_bound,
            batch_size=batch_size,
            releases=releases,
            statistical_bits=statistical_bits,
            private_bits=private_bits,
            weight_norm=weight_norm if private_bits else 0.0,
        )
        scale = candidate._native.best_scale(*shape, weight_norm, byte_nanoseconds(link))
        if scale == 0:
            continue
        candidate = replace(candidate, scale=scale)
        step = candidate.estimate(*shape, weight_norm=weight_norm, link=link)
        if step["flooding_deviation"] > FLOODING_DEVIATION:
            continue
        if private_bits and not _keeps_smaller_batches(candidate, shape, weight_norm):
            continue
        yield candidate, step


def _keeps_smaller_batches(candidate: Parameters, shape: tuple[int, int, int], weight_norm: float) -> bool:
    """Whether smaller batches are within the error bound too: more outputs may share a product there, and its worst-case noise."""
    in_features, out_features, batch_size = shape
    try:
        for rows in {1 << bits for bits in range(batch_size.bit_length())}:
            candidate.estimate(in_features, out_features, rows, weight_norm=weight_norm)
    except RangeError:
        return False
    return True


def describe_security(security: Security) -> str:
    """What a level of security says, in words."""
    return "below 128 bits" if security == "paper" else f"128 bits, {_AGAINST[security]}"


_AGAINST: dict[str, str] = {"standard": "classical", "quantum": "quantum"}


def _candidates(packing: Packing, security: Attacker, *, traced: bool = False) -> list[tuple[int, list[int]]]:
    """Ring degrees and primes that are worth trying and have 128 bits; but in blocks the last prime is for key switching.

    Nor is it where slots are `traced`, those of private weights.
    """
    return [
        (ring_degree, modulus_bits)
        for ring_degree, modulus_bits in (_TRACED if traced else _worth_trying(packing, security))
        if sum(modulus_bits) <= _core.max_modulus_bits(ring_degree, security)
    ]


# Bits of modulus beyond the least that holds a layer, up to which replies may become shorter by more than requests grow. Of merged
# blocks the special prime grows, too.
_SHORTER_REPLIES: dict[Packing, int] = {"blocks": 12, "slots": 12, "merged": 24}
#: Vector kernels take primes up to this.
_VECTOR_PRIME_BITS = 50
#: Up to this matrix products of large layers take 32-bit multiplications (kCheapPrimeBits).
_CHEAP_PRIME_BITS = 29
_LEAST_PRIME_BITS = 20


def _splits(bits: int) -> list[list[int]]:
    """A modulus of so many bits as a product of primes of nearly one size: of as few as vector kernels take, and of short ones."""
    fewest, short = math.ceil(bits / _VECTOR_PRIME_BITS), math.ceil(bits / _CHEAP_PRIME_BITS)
    # Of fewer bits there are not enough primes.
    numbers = sorted({fewest, short if bits // short >= _LEAST_PRIME_BITS else fewest})
    return [[(bits + part) // parts for part in range(parts)] for parts in numbers]


# Private weights on slots: their flood hides what rounds weights and activations, too.
_TRACED = [
    *((4096, split) for bits in range(90, 107, 4) for split in _splits(bits)),
    *((8192, split) for bits in range(108, 215, 4) for split in _splits(bits)),
    *((16384, split) for bits in range(216, 301, 12) for split in _splits(bits)),
]


def _special_bits(bits: int, primes: int, room: int) -> list[int]:
    """Lengths of a special prime that are worth trying beside a modulus of so many bits, where there is room for so many more.

    Keys are as long as the whole modulus, so it is no longer than merging needs to add little noise. Where it cannot be longer than
    two primes together, they are digits of their own (cpp/linear/merged/merging.h), and it is longer than each.
    """
    most = min(room, _VECTOR_PRIME_BITS)
    if primes == 1 or bits + 2 <= most:
        return [min(bits, most)]
    least = bits // 2 + 6
    return [special for special in (least, least + 2, least + 4, most) if least <= special <= most]


def _worth_trying(packing: Packing, security: Attacker) -> list[tuple[int, list[int]]]:
    if packing == "blocks":
        least = 40 if security == "standard" else 30
        return [
            *((2048, split) for bits in range(least, 54) for split in _splits(bits)),
            *((4096, split) for bits in range(54, 107, 2) for split in _splits(bits)),
            *((8192, split) for bits in (*range(108, 151, 6), 180, 200) for split in _splits(bits)),
        ]
    if packing == "merged":
        return [
            (ring_degree, [*split, special])
            for ring_degree, sizes in ((4096, range(28, 62)), (8192, range(54, 61, 3)))
            for bits in sizes
            for split in _splits(bits)
            if len(split) <= 2
            for special in _special_bits(bits, len(split), _core.max_modulus_bits(ring_degree, security) - bits)
        ]
    return [
        (4096, [33, 33, 40]),
        (4096, [35, 35, 36]),
        (4096, [37, 37, 32]),
        *([(4096, [26, 26, 28]), (8192, [50, 50, 60])] if security == "quantum" else []),
        (8192, [40, 40, 50]),
        (8192, [50, 50, 55]),
        (8192, [50, 50, 50, 60]),
        (16384, [50, 50, 50, 60]),
    ]
