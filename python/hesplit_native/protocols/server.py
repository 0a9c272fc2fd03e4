"""The server's side of `plain` and `splitways`: one conversation per client."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import perf_counter

from hesplit_native.errors import HESplitError, ProtocolError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.plain import PlainServer
from hesplit_native.protocols.splitways import SplitWaysServer
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.in_process import Conversation
from hesplit_native.transport.tcp import TIMEOUT, TcpChannel, accept, listen

ServerLayer = PlainServer | SplitWaysServer


class ServerState:
    """What is left of a session when it is over."""

    def __init__(self) -> None:
        self.terms: Terms | None = None
        self.layer: ServerLayer | None = None
        self.seconds: dict[str, float] = {}
        self.steps = 0

    def take_step(self) -> None:
        """Count a training step; the handshake agreed on how many there are."""
        agreed = self.terms.batches * self.terms.epochs if self.terms else 0
        if agreed and self.steps >= agreed:
            raise ProtocolError(f"the handshake agreed on {agreed} training steps, this would be one more")
        self.steps += 1


def converse(state: ServerState) -> Conversation:
    """Answer one client until it ends the session: yields replies, is sent requests.

    A request that breaks the protocol is answered with its reason, and the session is over.
    """
    message = yield b""
    step = 0
    while True:
        try:
            request = messages.unpack(message)
            if request.step != step:
                raise ProtocolError(f"request {request.step} came where {step} was due")
            kind, body = _answer(state, request)
        except HESplitError as error:
            yield messages.pack(MessageType.ERROR, step, messages.text(str(error)))
            return
        message = yield messages.pack(kind, step, body)
        step += 1
        if kind is MessageType.SUMMARY:
            return


def _answer(state: ServerState, request: Message) -> tuple[MessageType, bytes]:
    """Algorithm 4 of Split Ways, a message at a time."""
    start = perf_counter()
    if state.layer is None:
        if request.type is not MessageType.HELLO:
            raise ProtocolError(f"{request.type.name} came before the handshake")
        return MessageType.WELCOME, _welcome(state, request.body)
    if request.type in (MessageType.FORWARD, MessageType.EVALUATE):
        training = request.type is MessageType.FORWARD
        answer = MessageType.LOGITS, state.layer.forward(request.body, training=training)
        phase = "forward" if training else "evaluation"
    elif request.type is MessageType.BACKWARD:
        state.take_step()
        answer = MessageType.INPUT_GRADIENT, state.layer.backward(request.body)
        phase = "backward and update"
    elif request.type is MessageType.END:
        messages.take_nothing(request.body, "end")
        return MessageType.SUMMARY, messages.text(json.dumps(state.seconds))
    else:
        raise ProtocolError(f"{request.type.name} is not a request")
    state.seconds[phase] = state.seconds.get(phase, 0.0) + perf_counter() - start
    return answer


def _welcome(state: ServerState, body: memoryview) -> bytes:
    values, material = messages.take_json(body, "handshake")
    terms = Terms.from_json(values)
    if terms.protocol == "plain":
        messages.take_nothing(material, "handshake")
        if terms.parameter_hash:
            raise WireError("handshake: plain has no parameters")
        layer: ServerLayer = PlainServer(terms)
    else:
        layer = SplitWaysServer(terms, bytes(material))
    state.terms, state.layer = terms, layer
    return messages.text(terms.to_json())


def serve(
    host: str,
    port: int,
    *,
    on_event: Callable[[str], None] = lambda text: None,
    on_listen: Callable[[int], None] = lambda port: None,
    output: Path | None = None,
    sessions: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Serve one client after another over TCP, each in a session with its own weights.

    Parameters
    ----------
    on_event, on_listen
        Called with a line for the log, and with the port once it is open (useful with port 0).
    output
        Directory for the trained layer of each session (``server-<number>.safetensors``); None: not kept.
    sessions
        Stop after that many clients; None: never.
    timeout
        Seconds without a message after which a client counts as gone.
    """
    with listen(host, port) as listener:
        on_listen(listener.getsockname()[1])
        number = 0
        while sessions is None or number < sessions:
            number += 1
            with accept(listener, timeout=timeout) as channel:
                state = ServerState()
                try:
                    on_event(f"client {number} connected")
                    _serve_one(channel, state)
                    on_event(f"client {number} done: {channel.bytes_up:,} bytes up, {channel.bytes_down:,} bytes down")
                except HESplitError as error:
                    on_event(f"client {number} failed: {error}")
                except Exception as error:  # whatever one client causes, the next one is served
                    on_event(f"client {number} failed: internal error: {error!r}")
                if output is not None and state.layer is not None and state.steps:
                    _save(output, state.layer)


def _serve_one(channel: TcpChannel, state: ServerState) -> None:
    conversation = converse(state)
    next(conversation)
    while True:
        try:
            reply = conversation.send(channel.receive())
        except StopIteration:
            return
        channel.send(reply)
        kind = messages.unpack(reply).type
        if kind is MessageType.SUMMARY:
            return
        if kind is MessageType.ERROR:
            reason, _ = messages.take_text(messages.unpack(reply).body, "error")
            raise ProtocolError(reason)


def _save(folder: Path, layer: ServerLayer) -> None:
    """Write the layer beside those of earlier sessions, also of earlier servers."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    numbers = (folder / f"server-{number}.safetensors" for number in count(1))
    path = next(path for path in numbers if not path.exists())
    save_file({name: value.contiguous() for name, value in layer.linear.state_dict().items()}, path)
