"""What a client learns of the server's weights: from one reply of the encrypted layer, from its head, and from answers alone.

c1 of a product is ``round(2^b / q * sum_j a_j * w_j)``. The client drew a_j, or rather the seed that they are expanded from, so a
reply holds thousands of linear equations in the integers of W, each with an error that is known to be small: learning with
rounding, with W as its secret and as few unknowns as the layer has weights. For small layers lattice reduction finds them (Kannan's
embedding, Lenstra, Lenstra and Lovász 1982).

A reply also says at which scale its numbers are. The scale is the largest that cannot wrap around, so it says how large the
largest logit can be, from which the norms of W follow, and with them its length.

Answers alone, whatever computes them, give W to whoever may ask as many independent questions as there are features, and one more
for the bias (Tramèr et al. 2016, section 4.1); noise on them only makes it take more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import ParameterError
from hesplit_native.layer.linear import LinearClient, LinearServer

Floats = npt.NDArray[np.float64]

# Lattices beyond this dimension are not tried: LLL takes minutes, and finds less and less.
MAX_DIMENSION = 400

_RANGE_SLACK = 1.002


@dataclass(frozen=True)
class Reduction:
    """Weights as integers that a reply's lattice holds, ``weights`` [out_features, in_features]; NaN where none was found."""

    weights: Floats
    dimension: int  # of the largest lattice


def from_reply(client: LinearClient, request: bytes, reply: bytes) -> Reduction:
    """W from the reply to one request of the client's own, packing ``"blocks"``.

    Raises
    ------
    ParameterError
        For layers whose lattice has more dimensions than `MAX_DIMENSION`, and without fpylll (extra ``privacy``).
    """
    from hesplit_native import _core

    # Whoever sent the public material can read messages as its server does.
    server = LinearServer(client.public_material(), np.zeros((client.out_features, client.in_features)))._native
    sent, seen = _core.inspect_request(server, request), _core.inspect_reply(server, reply)
    degree, primes = client.parameters.ring_degree, list(client.parameters._native.primes)
    q = math.prod(primes)
    inputs = [_composed(ciphertext["c1"], primes, q) for ciphertext in sent["ciphertexts"]]
    width, group = sent["width"], sent["rows"]
    block = width * group
    per_product = degree // block
    # What W is multiplied by before it is rounded, from what the reply says of its scale.
    scale = seen["scale"] * q / 2.0 ** seen["bits"] / sent["scale"]
    weights = np.full((client.out_features, client.in_features), np.nan)
    dimension = 0
    for p, ciphertext in enumerate(seen["ciphertexts"]):
        outputs = range(p * per_product, min((p + 1) * per_product, client.out_features))
        places = [(j, u * block - i) for u in range(len(outputs)) for j, i in _features(client.in_features, width)]
        # A few more equations than say the unknowns.
        unknown_bits = len(places) * max(8.0, math.log2(scale * 4))
        equations = min(degree, 8 + math.ceil(1.25 * unknown_bits / seen["bits"]))
        dimension = max(dimension, len(places) + equations + 1)
        if dimension > MAX_DIMENSION:
            raise ParameterError(
                f"the lattice of this layer has {dimension} dimensions; up to {MAX_DIMENSION} are tried"
            )
        rows = [[_coefficient(inputs[j], t - shift, q) for t in range(equations)] for j, shift in places]
        known = [int(value) * q // 2 ** seen["bits"] for value in ciphertext["c1"].ravel()[:equations]]
        found = _closest(rows, known, q, error=q // 2 ** (seen["bits"] + 1) + 1, size=math.ceil(scale))
        if found is not None:
            weights[outputs.start : outputs.stop] = np.array(found, float).reshape(len(outputs), -1) / scale
    return Reduction(weights, dimension)


@dataclass(frozen=True)
class Head:
    """What a reply says of the server's weights before its ciphertexts: its length in bytes, and its numbers' bits and scale."""

    length: int
    bits: int
    scale: float
    reach: float  # the most that |y| can be by it


def from_head(client: LinearClient, reply: bytes) -> Head:
    """What the head of a reply says; the reach is the largest ``|w x| + |b|`` of any output, over all x in the agreed ranges.

    Packing ``"blocks"``, as `from_reply`.
    """
    from hesplit_native import _core

    server = LinearServer(client.public_material(), np.zeros((client.out_features, client.in_features)))._native
    seen = _core.inspect_reply(server, reply)
    # Both sides know the rule (cpp/linear/precision): half of the modulus is the reach, with slack and room for two errors.
    filled = 2.0 ** (seen["bits"] - 1) / seen["scale"]
    reach = (filled - 2 * client.parameters.error_bound) / _RANGE_SLACK
    return Head(len(reply), seen["bits"], seen["scale"], reach)


def questions(features: int, bound: float) -> Floats:
    """Nothing, and each feature alone, as large as it may be: the questions [d + 1, d] whose answers give b and W most exactly."""
    return np.vstack([np.zeros((1, features)), bound * np.eye(features)])


def from_answers(x: Floats, y: Floats, *, ridge: float = 0.0) -> tuple[Floats, Floats]:
    """W [out_features, in_features] and bias [out_features] from questions x [n, in_features] and their answers, by least squares.

    With fewer than in_features + 1 independent questions the solution of least norm, which is not W. For noisy answers `ridge` is
    the variance of the noise in units of that of W's entries: the best estimate then, where both are normal.
    """
    design = np.hstack([x, np.ones((len(x), 1))])
    if ridge:
        design = np.vstack([design, np.sqrt(ridge) * np.eye(design.shape[1])])
        y = np.vstack([y, np.zeros((design.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    return np.ascontiguousarray(solution[:-1].T), solution[-1]


def _features(features: int, width: int) -> list[tuple[int, int]]:
    """Input polynomial and place in its blocks of every feature."""
    return [divmod(feature, width) for feature in range(features)]


def _composed(residues: npt.NDArray[np.uint64], primes: list[int], q: int) -> list[int]:
    factors = [q // prime * pow(q // prime, -1, prime) for prime in primes]
    return [
        sum(int(value) * factor for value, factor in zip(column, factors, strict=True)) % q for column in residues.T
    ]


def _coefficient(polynomial: list[int], place: int, q: int) -> int:
    """Of x^shift times a polynomial modulo x^N + 1: the coefficient that `place` = t - shift means."""
    turns, at = divmod(place, len(polynomial))
    return polynomial[at] if turns % 2 == 0 else (q - polynomial[at]) % q


def _closest(rows: list[list[int]], known: list[int], q: int, *, error: int, size: int) -> list[int] | None:
    """Integers w of about `size` with ``sum_i w_i rows[i] - known`` of about `error` modulo q; None if there seem to be none."""
    try:
        from fpylll import LLL, IntegerMatrix
    except ImportError as error_:
        raise ParameterError(
            "lattice reduction needs fpylll, which is missing: pip install -c constraints.txt '.[privacy]' (from the source)"
        ) from error_
    unknowns, equations = len(rows), len(known)
    # All entries of the wanted vector are about as large: equations `left` times their errors, unknowns `right` times, then `last`.
    left, right = max(1, size // error), max(1, error // size)
    last = max(left * error, right * size)
    basis = [[left * v for v in row] + [right * (i == k) for k in range(unknowns)] + [0] for i, row in enumerate(rows)]
    basis += [[left * q * (t == k) for k in range(equations)] + [0] * (unknowns + 1) for t in range(equations)]
    basis.append([left * v for v in known] + [0] * unknowns + [last])
    lattice = IntegerMatrix.from_matrix(basis)
    LLL.reduction(lattice)
    for vector in lattice:
        if abs(vector[equations + unknowns]) == last:
            found = [vector[equations + i] // right for i in range(unknowns)]
            return [-value for value in found] if vector[equations + unknowns] > 0 else found
    return None
