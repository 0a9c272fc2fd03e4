"""Feature-space hijacking: a malicious server trains the client (Pasquini et al. 2021).

In `vanilla` and `plain` the server sees activations and answers with dJ/da, and nothing makes that the gradient of the task. The
server has signals of its own; it trains an encoder and a decoder on them and sends the client gradients that make its activations
look, to a discriminator, like that encoder's. Then the decoder opens the client's activations too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError
from hesplit_native.privacy.attacks.malicious import victim
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, Answers, take_tensor
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.messages import MessageType
from hesplit_native.seeding import seeded
from hesplit_native.training.config import RunConfig
from hesplit_native.training.models import Architecture
from hesplit_native.training.recipes import dataset_architecture

Float32 = npt.NDArray[np.float32]


class Hijacker:
    """Stands before an honest `plain` server: it answers gradients that serve the server.

    Parameters
    ----------
    auxiliary
        The server's own signals [n, channels, samples].
    network
        What the client's part looks like.
    """

    def __init__(self, honest: Answers, auxiliary: Float32, network: Architecture, *, seed: int = 0) -> None:
        self.honest = honest
        self.auxiliary = torch.from_numpy(auxiliary)
        self.activations: Tensor | None = None
        signal, activations = auxiliary[0].size, network.activations
        self.width = activations
        # An encoder that the client can be made to imitate: one like its own, with other weights.
        self.pilot = network.body(seed + 1)
        with seeded(seed):
            self.decoder = nn.Sequential(nn.Linear(activations, 256), nn.LeakyReLU(), nn.Linear(256, signal))
            self.critic = nn.Sequential(
                nn.Linear(activations, 256), nn.LeakyReLU(), nn.Linear(256, 128), nn.LeakyReLU(), nn.Linear(128, 1)
            )
        self.autoencoder_optimizer = torch.optim.Adam([*self.pilot.parameters(), *self.decoder.parameters()], 1e-3)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), 5e-4, betas=(0.5, 0.9))
        self.generator = torch.Generator().manual_seed(seed)

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """As the honest server."""
        return self.honest.work(kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """As the honest server, but for dJ/da."""
        answer = self.honest.answer(kind, body)
        if kind is MessageType.FORWARD:
            values, _ = messages.take_matrix(body, "activations", rows=range(1, 65537), columns=self.width)
            self.activations = torch.from_numpy(values.copy())
        if answer is None or answer[0] is not MessageType.INPUT_GRADIENT or self.activations is None:
            return answer
        honest = take_tensor(memoryview(answer[1]), "input gradient", *self.activations.shape)
        forged = self._step(self.activations)
        # As large as the honest one was wherever that is possible: a client that watches norms sees nothing.
        forged = forged * (honest.norm().clamp_min(1e-2) / forged.norm().clamp_min(1e-12))
        return answer[0], messages.matrix(forged.numpy(), "input gradient")

    @torch.enable_grad()  # called from the backward pass of a client in this process
    def _step(self, activations: Tensor) -> Tensor:
        n = len(activations)

        def draw_auxiliary() -> Tensor:
            return self.auxiliary[torch.randint(0, len(self.auxiliary), (n,), generator=self.generator)]

        signals = draw_auxiliary()
        loss = nn.functional.mse_loss(self.decoder(self.pilot(signals)), signals.flatten(1))
        self.autoencoder_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.autoencoder_optimizer.step()
        for _ in range(2):
            with torch.no_grad():
                wanted = self.pilot(draw_auxiliary())
            mix = torch.rand(n, 1, generator=self.generator)
            between = (mix * wanted + (1 - mix) * activations).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            critic_loss = self.critic(activations).mean() - self.critic(wanted).mean() + 10 * penalty
            self.critic_optimizer.zero_grad()
            critic_loss.backward()
            self.critic_optimizer.step()
        asked = activations.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(-self.critic(asked).mean(), asked)
        return gradient

    @torch.no_grad()
    def decode(self, activations: Tensor) -> Float32:
        """Signals [n, channels, samples] from the client's activations."""
        decoded: Float32 = self.decoder(activations).numpy()
        return decoded.reshape(len(activations), *self.auxiliary.shape[1:])


@dataclass(frozen=True)
class Hijacked:
    """Signals that the server decoded from activations of the last steps, and the true ones: [n, channels, samples]."""

    decoded: Float32
    inputs: Float32


def hijack(config: RunConfig, dataset: Dataset, auxiliary: Float32, *, steps: int = 2000, keep: int = 64) -> Hijacked:
    """Let a `plain` client train against the hijacker; what it decodes from the last `keep` steps."""
    if config.protocol != "plain":
        raise ParameterError("the hijacker speaks plain: elsewhere the server does not see activations")
    client, session = victim(config, dataset)
    hijacker = Hijacker(session.protocol, auxiliary, dataset_architecture(config, dataset), seed=config.seed + 1)
    session.protocol = hijacker
    x, y = torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y)
    generator = torch.Generator().manual_seed(config.seed)
    decoded, inputs = [], []
    for step in range(steps):
        rows = torch.randint(0, len(x), (config.batch_size,), generator=generator)
        client.learn(x[rows], y[rows])
        if step >= steps - keep:
            assert hijacker.activations is not None
            decoded.append(hijacker.decode(hijacker.activations))
            inputs.append(x[rows].numpy())
    return Hijacked(np.concatenate(decoded), np.concatenate(inputs))
