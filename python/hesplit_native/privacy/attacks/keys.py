"""The secret key from decryptions that were released without flooding (Li and Micciancio 2021).

Every released value is a linear equation in the key s, a ternary polynomial: the server sent c0 and c1 and sees what c0 + c1 s was.

- `hesplit` returns opened, masked integers: exact equations modulo 2^bits. A system modulo 2 gives the support of s, another one its
  signs. Two steps of batch 4 on 256 -> 5 are enough.
- `splitways` returns dJ/dy, from which follow the decrypted logits y' up to a shift per sample. For n < o the server has the
  activations too, hence y. Then y' - y is the rounding of the reply, of which the server knows all but s: rho_0 + rho_1 s, plus the
  noise of the request: a linear regression, which half an epoch decides.

Both work at the real parameters. A key that was found is proved right by opening requests with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

from hesplit_native import _core
from hesplit_native.layer.linear import LinearServer
from hesplit_native.privacy.attacks.activations import from_gradients, mean_activation
from hesplit_native.privacy.attacks.labels import probabilities
from hesplit_native.privacy.transcript import Step, Transcript

Ternary = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]

# Of the core's messages: the header's bytes, and what the body of a reply or of a masked gradient starts with.
HEADER = 64
SHAPE = struct.Struct("<IIIBd")  # samples, rows, width, bits, scale
#: What tests have for taking messages apart, and for damaging them: bit packing, and another checksum.
byte_tools = cast(Any, _core).testing


@dataclass(frozen=True)
class KeyFound:
    """An attack's key, right or wrong: `opened` are the activations [n, in] of each step that it decrypts, None where it does not."""

    key: Ternary
    equations: int
    opened: list[Float64 | None]

    @property
    def share(self) -> float:
        """The share of requests that this key opens."""
        return sum(x is not None for x in self.opened) / max(len(self.opened), 1)


# Masked weights


def from_masked_weights(transcript: Transcript) -> KeyFound:
    """The key of a `hesplit` client from its opened weight gradients."""
    degree = honest_server(transcript).parameters.ring_degree
    rows, values = [], []
    for step in transcript.steps:
        for c0, c1, positions, opened, bits in _opened(step, transcript, degree):
            rows.append(_equations(c1, positions) & 3)
            values.append((opened - c0) & 3 if bits > 1 else opened - c0)
        if sum(map(len, rows)) >= degree + 64:
            break
    matrix, right = np.concatenate(rows), np.concatenate(values)
    support = _solve_binary(matrix & 1, right & 1)
    # Modulo 4 a key is support + 2 * negative.
    rest = (right - matrix.astype(np.int64) @ support) & 3
    negative = _solve_binary(matrix & 1, (rest >> 1) & 1)
    key = (support * (1 - 2 * negative)).astype(np.int8)
    return KeyFound(key, len(right), _open_all(transcript, key))


def _opened(step: Step, transcript: Transcript, degree: int) -> Iterator[tuple[Any, ...]]:
    """c0 and c1 of every masked product, the positions of what is sent of it, and what was opened."""
    _, rows, width, bits, _ = SHAPE.unpack_from(step.masked, HEADER)
    at, back = HEADER + SHAPE.size, HEADER
    inputs, per_product = -(-transcript.features // width), max(1, min(transcript.outputs, degree // (rows * width)))
    for p in range(-(-transcript.outputs // per_product)):
        outputs = min(per_product, transcript.outputs - p * per_product)
        for j in range(inputs):
            features = min(width, transcript.features - j * width)
            positions = (np.arange(outputs)[:, None] * rows * width + np.arange(features)).ravel()
            size = -(-len(positions) * bits // 8)
            c0 = _unpack(step.masked[at : at + size], len(positions), bits)
            at += size
            c1 = _unpack(step.masked[at : at + degree * bits // 8], degree, bits)
            at += degree * bits // 8
            yield c0, c1, positions, _unpack(step.opened[back : back + size], len(positions), bits), bits
            back += size


def _unpack(data: bytes, count: int, bits: int) -> npt.NDArray[np.int64]:
    return np.asarray(byte_tools.unpack_bits(data, count, bits, 1 << bits), np.int64)


def _equations(poly: npt.NDArray[Any], positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The rows that turn s into coefficients of poly * s: row t holds poly[t - k], negated where it wraps around."""
    degree = len(poly)
    double = np.concatenate([-poly, poly])
    return np.asarray(double[degree + positions[:, None] - np.arange(degree)])


def _solve_binary(matrix: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """A solution modulo 2 of as many equations as are consistent, by elimination on packed bits."""
    unknowns = matrix.shape[1]
    table = np.packbits(np.concatenate([matrix, right[:, None]], 1).astype(np.uint8), axis=1, bitorder="little")
    pivots: list[tuple[int, int]] = []
    row = 0
    for column in range(unknowns):
        byte, bit = column // 8, np.uint8(1 << (column % 8))
        ones = np.flatnonzero(table[:, byte] & bit)
        below = ones[ones >= row]
        if len(below) == 0:
            continue
        table[[row, below[0]]] = table[[below[0], row]]
        others = np.flatnonzero(table[:, byte] & bit)
        others = others[others != row]
        table[others] ^= table[row]
        pivots.append((row, column))
        row += 1
    solution = np.zeros(unknowns, np.int64)
    for pivot, column in pivots:
        solution[column] = (table[pivot, unknowns // 8] >> (unknowns % 8)) & 1
    return solution


# Gradients


def from_gradients_of_logits(transcript: Transcript, *, observer: Any = None) -> KeyFound:
    """The key of a `splitways` client (or of `hesplit`'s) from dJ/dy alone, by regression over all steps."""
    server = honest_server(transcript)
    degree = server.parameters.ring_degree
    normal, right = np.zeros((degree, degree), np.float32), np.zeros(degree)
    mean = mean_activation(transcript)
    equations = 0
    pending_rows: list[npt.NDArray[np.float32]] = []
    pending_values: list[Float64] = []

    def settle() -> None:
        nonlocal normal, right
        if pending_rows:
            rows, values = np.concatenate(pending_rows), np.concatenate(pending_values)
            normal += rows.T @ rows
            right += rows.T @ values
            pending_rows.clear()
            pending_values.clear()

    for index, step in enumerate(transcript.steps):
        found = _regression(transcript, step, server, mean)
        if found is not None:
            pending_rows.append(found[0])
            pending_values.append(found[1])
            equations += len(found[1])
        if len(pending_rows) == 64:
            settle()
        if observer is not None:
            observer(index + 1, len(transcript.steps))
    settle()
    noise = 128.0  # about the variance of what the regression does not explain; the key's is 2/3
    estimate = np.linalg.solve(normal.astype(np.float64) + noise * 1.5 * np.eye(degree), right)
    # What is clear is taken out, and the rest is asked again.
    for threshold in (0.15, 0.25, 0.35):
        sure = np.abs(estimate - np.rint(estimate)) < threshold
        fixed = np.where(sure, np.clip(np.rint(estimate), -1, 1), 0.0)
        open_ = np.flatnonzero(~sure)
        if len(open_) == 0:
            break
        part = normal[np.ix_(open_, open_)].astype(np.float64) + noise * 1.5 * np.eye(len(open_))
        estimate = fixed
        estimate[open_] = np.linalg.solve(part, right[open_] - normal[open_].astype(np.float64) @ fixed)
    key = np.clip(np.rint(estimate), -1, 1).astype(np.int8)
    return KeyFound(key, equations, _open_all(transcript, key))


def _regression(
    transcript: Transcript, step: Step, server: LinearServer, mean: Float64
) -> tuple[npt.NDArray[np.float32], Float64] | None:
    """Rows of rho_1 and what they must give, centred over the outputs of each sample, of samples whose gradient tells enough."""
    gradient = transcript.gradient(step)
    if gradient is None or step.weight is None or step.bias is None or step.weight_gradient is None:
        return None
    g = gradient.astype(np.float64)
    n, outputs = g.shape
    probability = probabilities(gradient)
    usable = (np.linalg.norm(g, axis=1) > 3e-3) & (probability.min(1) > 1e-5) & (probability.max(1) < 1 + 1e-6)
    if not usable.any():
        return None
    x = from_gradients(gradient, step.weight_gradient, mean)
    exact = x @ step.weight.astype(np.float64).T + step.bias
    decrypted = np.log(np.where(usable[:, None], probability, 1.0))
    server.set_weight(step.weight, step.bias)
    seen = server._native.look(step.forward)
    bits, scale, primes = seen["reply_bits"], seen["reply_scale"], seen["primes"]
    per_product = seen["products"][0][0].shape[1] // n
    rows = np.zeros((n, outputs, server.parameters.ring_degree), np.float32)
    offsets = np.zeros((n, outputs))
    for p, (c0, c1) in enumerate(seen["products"]):
        rounding, of_outputs = _rounding(c1, bits, primes), _rounding(c0, bits, primes)
        for u in range(c0.shape[1] // n):
            positions = (u * seen["rows"] + np.arange(n)) * seen["width"]
            rows[:, p * per_product + u] = _equations(rounding, positions)
            offsets[:, p * per_product + u] = of_outputs[u * n : (u + 1) * n]
    values = (decrypted - exact) * scale - offsets
    rows -= rows.mean(1, keepdims=True)
    values -= values.mean(1, keepdims=True)
    values = values[usable]
    good = (
        np.abs(values).max(1) < 50
    )  # rho_1 s has a deviation of 10.7 at N = 2048: elsewhere the activations are not exact enough
    if not good.any():
        return None
    return rows[usable][good].reshape(-1, rows.shape[2]), values[good].ravel()


def _rounding(residues: npt.NDArray[np.uint64], bits: int, primes: list[int]) -> npt.NDArray[np.float32]:
    """round(2^bits v / q) - 2^bits v / q of the integers v below q with these residues [primes, count]."""
    exact = _fractions(residues, primes) * np.longdouble(2) ** bits
    return np.asarray(np.rint(exact) - exact, np.float32)


def _fractions(residues: npt.NDArray[np.uint64], primes: list[int]) -> npt.NDArray[np.longdouble]:
    """V / q modulo 1, by the Chinese remainder theorem: the sum of v (q/p)^-1 mod p over p."""
    modulus = math.prod(primes)
    total = np.zeros(residues.shape[1], np.longdouble)
    for row, prime in zip(residues, primes, strict=True):
        inverse = pow(modulus // prime, -1, prime)
        product = row.astype(object) * inverse % prime if prime >> 31 else row * np.uint64(inverse) % np.uint64(prime)
        total += product.astype(np.longdouble) / np.longdouble(prime)
    return total - np.floor(total)


# Proof


def honest_server(transcript: Transcript) -> LinearServer:
    """The server's own object, from the public material; its weights do not matter for requests."""
    weight = np.zeros((transcript.outputs, transcript.features))
    return LinearServer(transcript.material, weight, np.zeros(transcript.outputs))


def _open_all(transcript: Transcript, key: Ternary, *, limit: int = 32) -> list[Float64 | None]:
    server = honest_server(transcript)
    return [open_request(server, transcript, step, key) for step in transcript.steps[-limit:]]


def open_request(server: LinearServer, transcript: Transcript, step: Step, key: Ternary) -> Float64 | None:
    """Activations [n, in] of a request under a key; None when it is not the key: then coefficients are all over the modulus."""
    seen = server._native.look(step.forward)
    primes, width, n = seen["primes"], seen["width"], seen["samples"]
    scale, bound = server.parameters.scale, server.parameters.activation_bound
    modulus = np.longdouble(math.prod(primes))
    x = np.zeros((n, transcript.features))
    for j, (c0, c1) in enumerate(seen["inputs"]):
        phase = [(a.astype(np.int64) + _times(b, key, p)) % p for a, b, p in zip(c0, c1, primes, strict=True)]
        fraction = _fractions(np.stack(phase).astype(np.uint64), primes)
        values = ((fraction - np.rint(fraction)) * modulus / scale).astype(np.float64)
        if np.abs(values).max() > 1.01 * bound + 1:
            return None
        used = min(width, transcript.features - j * width)
        x[:, j * width : j * width + used] = values[: n * width].reshape(n, width)[:, :used]
    return x


def _times(poly: npt.NDArray[np.uint64], key: Ternary, prime: int) -> npt.NDArray[np.int64]:
    """Poly * key modulo x^N + 1 and a prime below 2^60, exactly: in limbs of 20 bits, whose convolutions doubles hold."""
    degree = len(poly)
    total = np.zeros(degree, dtype=object)
    for limb in range(3):
        part = ((poly >> np.uint64(20 * limb)) & np.uint64((1 << 20) - 1)).astype(np.float64)
        product = np.rint(fftconvolve(part, key.astype(np.float64))).astype(np.int64)
        folded = product[:degree] - np.concatenate([product[degree:], np.zeros(1, np.int64)])
        total = total + folded.astype(object) * (1 << (20 * limb))
    return (total % prime).astype(np.int64)
