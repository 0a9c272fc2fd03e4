"""OpenFHE's CKKS from its wheel (1.6.1, for CPython 3.10): products with diagonals, hoisted rotations, rescaled replies."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.diagonals import Diagonals


class OpenFHE(Diagonals):
    """One level at N = 8192, which leaves room for a special prime: 50 + 40 bits, and 60 for key switching in two digits."""

    name = "OpenFHE"
    about = (
        "1.6.1, CKKS, N = 8192, 50 + 40 bits and 60 for key switching; "
        "128 bits (its own check, HEStd_128_classic); hides x from the server"
    )
    slots = 4096
    costs = {"encrypt": 2.0, "encode": 1.6, "multiply": 0.11, "hoisted": 3.0, "rotate": 5.0, "decrypt": 1.2}

    def keys(self, steps: Sequence[int]) -> None:
        fhe: Any = importlib.import_module("openfhe")
        self.fhe = fhe
        parameters = fhe.CCParamsCKKSRNS()
        parameters.SetSecurityLevel(fhe.SecurityLevel.HEStd_128_classic)
        parameters.SetSecretKeyDist(fhe.UNIFORM_TERNARY)
        parameters.SetRingDim(2 * self.slots)
        parameters.SetBatchSize(self.slots)
        parameters.SetMultiplicativeDepth(1)
        parameters.SetFirstModSize(50)
        parameters.SetScalingModSize(40)
        parameters.SetScalingTechnique(fhe.FIXEDMANUAL)
        parameters.SetKeySwitchTechnique(fhe.HYBRID)
        parameters.SetNumLargeDigits(2)
        self.context = fhe.GenCryptoContext(parameters)
        for feature in (fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE):
            self.context.Enable(feature)
        self.pair = self.context.KeyGen()
        if steps:
            self.context.EvalRotateKeyGen(self.pair.secretKey, list(steps))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "keys")
                if not self.context.SerializeEvalAutomorphismKey(str(path), fhe.BINARY):
                    raise OSError("OpenFHE could not write its keys")
                self.once = path.stat().st_size

    def encode(self, slots: np.ndarray) -> Any:
        return self.context.MakeCKKSPackedPlaintext(slots.tolist())

    def encrypt(self, slots: np.ndarray) -> bytes:
        message: bytes = self.fhe.Serialize(
            self.context.Encrypt(self.pair.secretKey, self.encode(slots)), self.fhe.BINARY
        )
        return message

    def load(self, message: bytes) -> Any:
        return self.fhe.DeserializeCiphertextString(message, self.fhe.BINARY)

    def rotations(self, ciphertext: Any, steps: Sequence[int]) -> list[Any]:
        if not steps:
            return []
        precomputed = self.context.EvalFastRotationPrecompute(ciphertext)
        order = self.context.GetCyclotomicOrder()
        return [self.context.EvalFastRotation(ciphertext, step, order, precomputed) for step in steps]

    def rotate(self, ciphertext: Any, step: int) -> Any:
        return self.context.EvalRotate(ciphertext, step)

    def multiply(self, ciphertext: Any, plaintext: Any) -> Any:
        return self.context.EvalMult(ciphertext, plaintext)

    def add(self, first: Any, second: Any) -> Any:
        self.context.EvalAddInPlace(first, second)
        return first

    def finish(self, ciphertext: Any, bias: np.ndarray) -> bytes:
        rescaled = self.context.Rescale(ciphertext)
        added = self.context.EvalAdd(rescaled, self.context.MakeCKKSPackedPlaintext(bias.tolist(), 1, 1))
        message: bytes = self.fhe.Serialize(added, self.fhe.BINARY)
        return message

    def decrypt(self, message: bytes) -> np.ndarray:
        plaintext = self.context.Decrypt(self.load(message), self.pair.secretKey)
        plaintext.SetLength(self.slots)
        return np.array(plaintext.GetRealPackedValue())
