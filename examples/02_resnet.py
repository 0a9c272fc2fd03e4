"""A convolutional network whose fully connected layers compute on ciphertexts, in one line, trained as before.

    python examples/02_resnet.py

Client and server are in this process, which is how to find out what encryption does to a model before anything is deployed.
"""

import copy

import torch
from torch import Tensor, nn

import hesplit_native as hn


class Residual(nn.Module):
    """Two convolutions around which their input passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def network() -> nn.Sequential:
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, Residual(16), Residual(16), *head)


def train(model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    clear = network()
    encrypted = hn.nn.encrypt(copy.deepcopy(clear))  # the one line
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))
    for plain, ours in zip(train(clear, images, labels), train(encrypted, images, labels), strict=True):
        print(f"loss in the clear {plain:.5f}, on ciphertexts {ours:.5f}")


if __name__ == "__main__":
    main()
