"""Many clients in one thread that cost little: training steps whose requests were made before, over light connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from ssl import SSLContext
from time import monotonic

import numpy as np
import numpy.typing as npt

import hesplit_native as hn
from benchmarks.light_client import LightChannel, client_context
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms, initial_linear
from hesplit_native.training.client import choose_parameters
from hesplit_native.training.config import RunConfig
from hesplit_native.transport.authority import make_authority, make_client, make_server

FEATURES, OUTPUTS, ROWS = 256, 5, 8


def make_certificates(folder: Path, clients: int) -> list[SSLContext]:
    """A CA in that folder, a server's certificate and so many clients'."""
    make_authority(folder)
    make_server(folder, ["localhost", "127.0.0.1"])
    for number in range(clients):
        make_client(folder, f"client-{number}")
    return [client_context(folder, f"client-{number}") for number in range(clients)]


class Requests:
    """What clients of one protocol send: M1's layer, batches of 8."""

    def __init__(self, protocol: str) -> None:
        config = RunConfig(protocol=protocol, batch_size=ROWS)
        parameters = choose_parameters(config, FEATURES, OUTPUTS)
        self.terms = Terms(
            protocol=protocol, in_features=FEATURES, out_features=OUTPUTS, batch_size=ROWS, batches=0, epochs=0,
            learning_rate=1e-4, server_optimizer="adam", weight_seed=7,
            parameter_hash=parameters.hash if parameters else "",
        )  # fmt: skip
        generator = np.random.default_rng(0)
        self._x = generator.normal(size=(ROWS, FEATURES)).astype(np.float32)
        gradient = generator.normal(size=(ROWS, OUTPUTS)).astype(np.float32) / ROWS
        self._linear: hn.LinearClient | None = None
        self.material = b""
        if parameters is not None:
            key = hn.SecretKey.generate(parameters)
            self._linear = hn.LinearClient(key, FEATURES, OUTPUTS, fresh_keys=True)
            self.material = self._linear.public_material()
        #: Of two kinds of steps in turn, so that weights stay where they are.
        self.backward = [self._backward(sign * gradient) for sign in (1, -1)]

    def forward(self) -> bytes:
        """The body of a request of its own."""
        return messages.matrix(self._x, "x") if self._linear is None else self._linear.encrypt(self._x)

    def check(self, logits: memoryview) -> None:
        """AssertionError unless these are the logits of a new session."""
        if self._linear is None:
            y, bound = messages.take_matrix(logits, "logits", rows=range(ROWS, ROWS + 1), columns=OUTPUTS)[0], 1e-5
        else:
            y, bound = self._linear.decrypt(logits), self._linear.parameters.error_bound
        layer = initial_linear(self.terms)
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        assert np.abs(y - (self._x.astype(np.float64) @ weight.T + bias)).max() <= bound

    def _backward(self, gradient: npt.NDArray[np.float32]) -> bytes:
        of_weights = b"" if self._linear is None else messages.matrix(gradient.T @ self._x, "weight gradient")
        return messages.matrix(gradient, "gradient") + of_weights


@dataclass(eq=False)
class Walker:
    """One client: its session, and when its steps began and how long they took."""

    requests: Requests
    channel: LightChannel
    nonce: bytes
    body: bytes
    request: int = 1
    began: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, requests: Requests, address: str, context: SSLContext) -> Walker:
        """A client with a new session, whose first logits were right."""
        channel = LightChannel(address, context)
        session = Session(channel, requests.terms, requests.material, Phases())
        body = requests.forward()
        requests.check(session.exchange(MessageType.EVALUATE, MessageType.LOGITS, body).body)
        return cls(requests, channel, session.nonce, body, request=2)

    def leave(self) -> None:
        """End the session, between two steps."""
        self.channel.send(messages.pack(MessageType.END, self.request, self.nonce))
        self.channel.receive()
        self.channel.close()

    def step(self) -> None:
        """Begin a training step."""
        self.began = monotonic()
        self._ask(MessageType.FORWARD, self.body)

    def answered(self, reply: bytes) -> bool:
        """Go on after a reply; whether the step is over."""
        message = messages.unpack(reply)
        assert message.step == self.request, f"a reply to {message.step}"
        self.request += 1
        if message.type is MessageType.LOGITS:
            self._ask(MessageType.BACKWARD, self.requests.backward[self.request // 2 % 2])
            return False
        assert message.type is MessageType.INPUT_GRADIENT, messages.take_text(message.body, "error")[0]
        self.latencies.append(monotonic() - self.began)
        return True

    def _ask(self, kind: MessageType, body: bytes) -> None:
        self.channel.put(messages.pack(kind, self.request, self.nonce, body))


class Crowd:
    """Clients with sessions; `run` lets all make steps."""

    def __init__(self, requests: Requests, address: str, contexts: list[SSLContext]) -> None:
        self.walkers = [Walker.begin(requests, address, context) for context in contexts]

    def run(self, seconds: float, pause: float = 0.0) -> None:
        """Steps of every client, each as soon as the one before is over and `pause` seconds since it began have passed."""
        start = monotonic()
        ends = start + seconds
        waiting = [(start + pause * number / len(self.walkers), number) for number in range(len(self.walkers))]
        at_work = 0
        with DefaultSelector() as selector:
            for number, walker in enumerate(self.walkers):
                walker.latencies.clear()
                selector.register(walker.channel.socket, EVENT_READ, number)
            while (now := monotonic()) < ends or at_work:
                while waiting and waiting[0][0] <= now < ends:
                    self.walkers[heappop(waiting)[1]].step()
                    at_work += 1
                until = min(waiting[0][0] if waiting else ends, ends) if now < ends else now + 1.0
                for key, mask in selector.select(max(0.0, until - now)):
                    walker = self.walkers[key.data]
                    if mask & EVENT_WRITE:
                        walker.channel.flush()
                    for reply in walker.channel.take():
                        if walker.answered(reply):
                            at_work -= 1
                            heappush(waiting, (walker.began + pause, key.data))
                    wanted = EVENT_READ | (EVENT_WRITE if walker.channel.waits_to_write else 0)
                    if wanted != key.events:
                        selector.modify(walker.channel.socket, wanted, key.data)

    def leave(self) -> None:
        """End all sessions."""
        for walker in self.walkers:
            walker.leave()


@contextmanager
def crowd(requests: Requests, address: str, contexts: list[SSLContext]) -> Iterator[Crowd]:
    """Clients that leave in the end."""
    everyone = Crowd(requests, address, contexts)
    yield everyone
    everyone.leave()
