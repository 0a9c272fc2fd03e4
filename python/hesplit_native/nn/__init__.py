"""PyTorch modules: an encrypted linear layer that is used like `torch.nn.Linear`."""

from __future__ import annotations

from hesplit_native.nn.encrypted_linear import EncryptedLinear

__all__ = ["EncryptedLinear"]
