"""The secret key from decryptions that were released without flooding (Li and Micciancio 2021).

Every released value is a linear equation in the key s, a ternary polynomial: the server sent c0 and c1 and sees what c0 + c1 s was.

- `hesplit` returns opened, masked integers: exact equations modulo 2^bits. A system modulo 2 gives the support of s, another one its
  signs. Two or three steps of batch 4 on 256 -> 5 are enough.
- `splitways` returns dJ/dy, from which follow the decrypted logits y' up to a shift per sample. For n < o the server has the
  activations too, hence y. Then y' - y is the rounding of the reply, of which the server knows all but s: rho_0 + rho_1 s, plus the
  noise of the request: a linear regression, which half an epoch decides.

Both work at the real parameters. A key that was found is proved right by opening requests with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

from hesplit_native import _core
from hesplit_native.layer.parameters import Parameters
from hesplit_native.privacy.attacks.activations import from_gradients, mean_activation
from hesplit_native.privacy.attacks.labels import probabilities
from hesplit_native.privacy.transcript import Step, Transcript

Ternary = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]


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
    server = honest_server(transcript)
    degree = ring_degree(server)
    rows, values = [], []
    for number, step in enumerate(transcript.steps, 1):
        for c0, c1, positions, opened in _opened_products(server, step):
            rows.append(_equations(c1, positions) & 3)
            values.append((opened - c0) & 3)
        if sum(map(len, rows)) < degree + 64 and number < len(transcript.steps):
            continue
        matrix, right = np.concatenate(rows), np.concatenate(values)
        support, rank = _solve_binary(matrix & 1, right & 1)
        # Modulo 2, x^N + 1 is (x + 1)^N: while every c1 so far vanishes at 1, the all-one polynomial is invisible.
        if rank == degree:
            break
    # Modulo 4 a key is support + 2 * negative.
    rest = (right - matrix.astype(np.int64) @ support) & 3
    negative, _ = _solve_binary(matrix & 1, (rest >> 1) & 1)
    key = (support * (1 - 2 * negative)).astype(np.int8)
    return KeyFound(key, len(right), _open_all(transcript, key))


def _opened_products(server: _core.LinearServer, step: Step) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Of every masked product: c0 and c1, the positions of what is sent of it, and what was opened."""
    masked = _core.inspect_masked_gradient(server, step.masked)
    opened = _core.inspect_opened_gradient(server, step.masked, step.opened)
    for ciphertext, values in zip(masked["ciphertexts"], opened, strict=True):
        c0, c1 = (ciphertext[part].astype(np.int64) for part in ("c0", "c1"))
        yield c0, c1, ciphertext["positions"], values.astype(np.int64)


def _equations(poly: npt.NDArray[Any], positions: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The rows that turn s into coefficients of poly * s: row t holds poly[t - k], negated where it wraps around."""
    degree = len(poly)
    double = np.concatenate([-poly, poly])
    return np.asarray(double[degree + positions[:, None] - np.arange(degree)])


def _solve_binary(matrix: npt.NDArray[Any], right: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], int]:
    """A solution modulo 2 of as many equations as are consistent, by elimination on packed bits; and the rank."""
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
    return solution, row


# Gradients


def from_gradients_of_logits(transcript: Transcript, *, observer: Callable[[int, int], None] | None = None) -> KeyFound:
    """The key of a `splitways` client (or of `hesplit`'s) from dJ/dy alone, by regression over all steps.

    `observer` is called with steps done and steps in all.
    """
    server = honest_server(transcript)
    mean = mean_activation(transcript)
    regression = _Regression(ring_degree(server))
    for index, step in enumerate(transcript.steps):
        found = _rounding_equations(transcript, step, server, mean)
        if found is not None:
            regression.add(*found)
        if observer is not None:
            observer(index + 1, len(transcript.steps))
    key = regression.solve()
    return KeyFound(key, regression.equations, _open_all(transcript, key))


@dataclass
class _Regression:
    """Least squares for a ternary key s [degree], from rows [m, degree] and the values [m] that rows @ s comes near to."""

    degree: int
    equations: int = 0
    _waiting: list[tuple[npt.NDArray[np.float32], Float64]] = field(default_factory=list)

    #: About the variance of what the regression does not explain; the key's own is 2/3.
    NOISE = 128.0

    def __post_init__(self) -> None:
        self._normal = np.zeros((self.degree, self.degree), np.float32)
        self._right = np.zeros(self.degree)

    def add(self, rows: npt.NDArray[np.float32], values: Float64) -> None:
        self._waiting.append((rows, values))
        self.equations += len(values)
        if len(self._waiting) == 64:
            self._add_waiting()

    def _add_waiting(self) -> None:
        """One large matrix product instead of many small ones."""
        if self._waiting:
            rows, values = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            self._normal += rows.T @ rows
            self._right += rows.T @ values
            self._waiting.clear()

    def solve(self) -> Ternary:
        self._add_waiting()
        estimate = self._estimate(np.arange(self.degree), self._right)
        # What is clear is taken out, and the rest is estimated again.
        for threshold in (0.15, 0.25, 0.35):
            clear = np.abs(estimate - np.rint(estimate)) < threshold
            known = np.where(clear, np.clip(np.rint(estimate), -1, 1), 0.0)
            unclear = np.flatnonzero(~clear)
            if len(unclear) == 0:
                break
            estimate = known
            rest = self._right[unclear] - self._normal[unclear].astype(np.float64) @ known
            estimate[unclear] = self._estimate(unclear, rest)
        return np.clip(np.rint(estimate), -1, 1).astype(np.int8)

    def _estimate(self, unknowns: npt.NDArray[np.int64], right: Float64) -> Float64:
        """Ridge regression: the prior is that coefficients have the variance 2/3."""
        matrix = self._normal[np.ix_(unknowns, unknowns)].astype(np.float64)
        return np.asarray(np.linalg.solve(matrix + 1.5 * self.NOISE * np.eye(len(unknowns)), right))


# rho_1 s has a deviation of 10.7 at N = 2048; where values are far beyond that, the activations are not exact enough.
_LARGEST_ROUNDING = 50


def _rounding_equations(
    transcript: Transcript, step: Step, server: _core.LinearServer, mean: Float64
) -> tuple[npt.NDArray[np.float32], Float64] | None:
    """Rows of rho_1 and what they must give, centred over the outputs of each sample, of samples whose gradient tells enough."""
    gradient = transcript.gradient(step)
    if gradient is None or step.weight is None or step.bias is None or step.weight_gradient is None:
        return None
    probability = probabilities(gradient)
    sizes = np.linalg.norm(gradient.astype(np.float64), axis=1)
    usable = (sizes > 3e-3) & (probability.min(1) > 1e-5) & (probability.max(1) < 1 + 1e-6)
    if not usable.any():
        return None
    weight, bias = step.weight.astype(np.float64), step.bias.astype(np.float64)
    exact = from_gradients(gradient, step.weight_gradient, mean) @ weight.T + bias
    decrypted = np.log(np.where(usable[:, None], probability, 1.0))
    seen = _core.inspect_products(server, step.forward, weight, bias)
    rows, offsets = _roundings(seen)
    values = (decrypted - exact) * seen["scale"] - offsets
    rows -= rows.mean(1, keepdims=True)
    values -= values.mean(1, keepdims=True)
    kept = usable & (np.abs(values).max(1) < _LARGEST_ROUNDING)
    if not kept.any():
        return None
    return rows[kept].reshape(-1, rows.shape[2]), values[kept].ravel()


def _roundings(seen: _core.InspectedMessage) -> tuple[npt.NDArray[np.float32], Float64]:
    """rho_1 as equations [n, outputs, degree] in the key, and rho_0 [n, outputs], of the modulus switch to the reply."""
    n, rows, offsets = seen["samples"], [], []
    for product in seen["ciphertexts"]:
        positions = product["positions"]  # by output, then sample
        of_key = _equations(_rounding(product["c1"], seen), positions)
        rows.append(of_key.reshape(len(positions) // n, n, -1))
        offsets.append(_rounding(product["c0"], seen).reshape(-1, n))
    return np.concatenate(rows).swapaxes(0, 1).copy(), np.concatenate(offsets).T.astype(np.float64)


def _rounding(residues: npt.NDArray[np.uint64], seen: _core.InspectedMessage) -> npt.NDArray[np.float32]:
    """round(2^bits v / q) - 2^bits v / q of the integers v below q with these residues [primes, count]."""
    exact = _fractions(residues, seen["primes"]) * np.longdouble(2) ** seen["bits"]
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


def honest_server(transcript: Transcript) -> _core.LinearServer:
    """The server's own object, from the public material."""
    return _core.LinearServer(transcript.material, 65536)


def ring_degree(server: _core.LinearServer) -> int:
    """N, the length of the client's key."""
    return _parameters(server).ring_degree


def _parameters(server: _core.LinearServer) -> Parameters:
    return Parameters.from_bytes(server.parameters.to_bytes())


def _open_all(transcript: Transcript, key: Ternary, *, limit: int = 32) -> list[Float64 | None]:
    server = honest_server(transcript)
    return [open_request(server, transcript, step, key) for step in transcript.steps[-limit:]]


def open_request(server: _core.LinearServer, transcript: Transcript, step: Step, key: Ternary) -> Float64 | None:
    """Activations [n, in] of a request under a key; None when it is not the key: then coefficients are all over the modulus."""
    seen = _core.inspect_request(server, step.forward)
    primes, width, n = seen["primes"], seen["width"], seen["samples"]
    largest = 1.01 * _parameters(server).activation_bound + 1
    modulus = np.longdouble(math.prod(primes))
    x = np.zeros((n, transcript.features))
    for j, ciphertext in enumerate(seen["ciphertexts"]):
        parts = zip(ciphertext["c0"], ciphertext["c1"], primes, strict=True)
        phase = [(c0.astype(np.int64) + _negacyclic_product(c1, key, p)) % p for c0, c1, p in parts]
        fraction = _fractions(np.stack(phase).astype(np.uint64), primes)
        values = ((fraction - np.rint(fraction)) * modulus / seen["scale"]).astype(np.float64)
        if np.abs(values).max() > largest:
            return None
        used = min(width, transcript.features - j * width)
        x[:, j * width : j * width + used] = values[: n * width].reshape(n, width)[:, :used]
    return x


def _negacyclic_product(poly: npt.NDArray[np.uint64], key: Ternary, prime: int) -> npt.NDArray[np.int64]:
    """Poly * key modulo x^N + 1 and a prime below 2^60, exactly: in limbs of 20 bits, whose convolutions doubles hold."""
    degree = len(poly)
    total = np.zeros(degree, dtype=object)
    for limb in range(3):
        part = ((poly >> np.uint64(20 * limb)) & np.uint64((1 << 20) - 1)).astype(np.float64)
        product = np.rint(fftconvolve(part, key.astype(np.float64))).astype(np.int64)
        folded = product[:degree] - np.concatenate([product[degree:], np.zeros(1, np.int64)])
        total = total + folded.astype(object) * (1 << (20 * limb))
    return (total % prime).astype(np.int64)
