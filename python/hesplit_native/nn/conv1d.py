"""The linear layer of transformers' GPT-2, whose weight lies the other way round, on ciphertexts."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from hesplit_native.nn.encrypted_linear import EncryptedLayer


class EncryptedConv1D(EncryptedLayer, Conv1D):
    """``y = x W + b`` computed on ciphertexts; a `transformers.pytorch_utils.Conv1D` in every other way. Made by `encrypt`."""

    def matrix(self) -> Tensor:
        """The weight as [out_features, in_features]."""
        return cast(Tensor, self.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out_features] of x [..., in_features]."""
        return self.encrypted(x)
