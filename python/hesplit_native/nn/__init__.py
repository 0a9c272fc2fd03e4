"""PyTorch modules: linear layers on ciphertexts that are used like `torch.nn.Linear`."""

from __future__ import annotations

from hesplit_native.nn.encrypted_linear import EncryptedLinear
from hesplit_native.nn.replace import decrypt, encrypt
from hesplit_native.nn.served_linear import ServedLinear
from hesplit_native.nn.split_linear import SplitLinear

__all__ = ["EncryptedLinear", "ServedLinear", "SplitLinear", "decrypt", "encrypt"]
