"""LoRA around layers that a server holds: tokens a second, bytes, and whose time it is, beside the same in the clear and a peer.

    python -m benchmarks.lora [--width 128] [--blocks 2] [--steps 10] [--peer-rows 1]

A GPT-2-shaped model is fine-tuned on 128 tokens a step, forward and backward, by two processes of one thread each: in the clear, and
with its blocks' linear layers at a server in both precisions. The first step, which fetches hints, is told apart. The peer,
concrete-ml-extensions, is what Concrete ML's LoRA computes such layers with: its products for one block, forward and for gradients, of
`--peer-rows` tokens (it takes a second for some fifty outputs), inputs and weights of 7 bits, encryption and decryption at the client;
a token of the whole model is that many times the blocks. It computes on exact integers, and what it costs does not depend on a hint.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import threading
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from time import perf_counter
from typing import Any

import numpy as np
import torch

import hesplit_native as hn

ROWS, LENGTH = 2, 64
TOKENS = ROWS * LENGTH
PRECISIONS = ("float32", "bfloat16")


@dataclass
class Way:
    """One way to make the step: losses, and what a step after the first took."""

    name: str
    losses: list[float] = field(default_factory=list)
    first: float = 0.0
    seconds: float = 0.0
    server: float = 0.0
    up: float = 0.0
    down: float = 0.0

    @property
    def client(self) -> float:
        return self.seconds - self.server


def gpt2(width: int, blocks: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        n_layer=blocks, n_embd=width, n_head=max(1, width // 64), n_positions=LENGTH, vocab_size=256,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(shape)


def vendor(pipe: Pipe, width: int, blocks: int, precision: Any) -> None:
    """Serve the model until told to stop; every message is answered with the seconds of work so far."""
    torch.set_num_threads(1)
    hn.set_num_threads(1)
    total, lock = [0.0], threading.Lock()

    def add(answered: Any) -> None:
        with lock:
            total[0] += answered.seconds

    with hn.serve(gpt2(width, blocks), layers="transformer.h.*", precision=precision, port=0, on_request=add) as server:
        pipe.send(server.address)
        while pipe.recv() != "stop":
            pipe.send(total[0])


def steps(model: Any, count: int, way: Way, before: Any = lambda: None) -> None:
    """Fine-tune; `before` is called when the first step is over."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapters = LoraConfig(r=8, target_modules=["c_attn", "c_fc", "c_proj"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # it finds out by itself, and says so
        tuned = get_peft_model(model, adapters).eval()  # no dropout, to compare
    optimizer = torch.optim.Adam(tuned.parameters(), lr=0.01)
    text = torch.randint(0, 256, (count, ROWS, LENGTH), generator=torch.Generator().manual_seed(2)) // 8
    start = perf_counter()
    for index, tokens in enumerate(text):
        optimizer.zero_grad()
        loss = tuned(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        way.losses.append(loss.item())
        if index == 0:
            way.first = perf_counter() - start
            before()
            start = perf_counter()
    way.seconds = (perf_counter() - start) / (count - 1)


def served(width: int, blocks: int, count: int, precision: str) -> Way:
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=vendor, args=(there, width, blocks, precision), daemon=True)
    process.start()
    way, marks = Way(f"hesplit_native, {precision}"), {}
    with hn.connect(here.recv()) as connection:

        def now() -> tuple[float, int, int]:
            here.send("how long?")
            return here.recv(), connection.bytes_up, connection.bytes_down

        steps(hn.nn.encrypt(gpt2(width, blocks), server=connection), count, way, lambda: marks.update(first=now()))
        end = now()
    here.send("stop")
    process.join()
    way.server, way.up, way.down = ((b - a) / (count - 1) for a, b in zip(marks["first"], end, strict=True))
    return way


def peer(width: int, blocks: int, rows: int) -> Way:
    """The products of one block, forward and for gradients, times the blocks; for as many tokens as a step has."""
    from benchmarks.peers.layers import ConcreteML

    way = Way("concrete-ml-extensions, products only")
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    share = blocks * TOKENS / rows
    for inputs, outputs in shapes + [(o, i) for i, o in shapes]:
        layer = ConcreteML(rows, inputs, outputs)
        seconds, y = layer.step()
        spread = float(np.sqrt(((y - layer.exact) ** 2).mean() / (layer.exact**2).mean()))
        print(
            f"  {rows} x {inputs} -> {outputs}: {sum(seconds.values()):.1f} s, error {100 * spread:.1f} %", flush=True
        )
        way.seconds += share * sum(seconds.values())
        way.server += share * seconds["forward"]
        way.up, way.down = way.up + share * layer.bytes[0], way.down + share * layer.bytes[1]
    return way


def line(way: Way) -> str:
    loss = f"{way.losses[-1]:.4f}" if way.losses else ""
    return (
        f"{way.name:38} {TOKENS / way.seconds:10.4g} {way.up / TOKENS / 1e3:10.1f} {way.down / TOKENS / 1e3:10.1f} "
        f"{way.client:10.4g} {way.server:10.4g} {way.first:8.2f} {loss:>9}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--peer-rows", type=int, default=1, help="tokens that the peer's products are measured on; 0: no peer"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    hn.set_num_threads(1)
    print(f"{options.blocks} blocks of width {options.width}, {TOKENS} tokens a step, LoRA of rank 8")
    clear = Way("in the clear")
    steps(gpt2(options.width, options.blocks), options.steps, clear)
    ways = [clear, *(served(options.width, options.blocks, options.steps, precision) for precision in PRECISIONS)]
    if options.peer_rows:
        try:
            ways.append(peer(options.width, options.blocks, options.peer_rows))
        except ImportError as error:
            print(f"  without concrete-ml-extensions: {error}; pip install -c constraints.txt '.[peers]'")
    print(
        f"{'':38} {'tokens/s':>10} {'kB/tok up':>10} {'kB/tok dn':>10} {'client s':>10} {'server s':>10} {'1st, s':>8} {'loss':>9}"
    )
    for way in ways:
        print(line(way))
    for way in ways[1:]:
        if way.losses:
            apart = max(abs(a / b - 1) for a, b in zip(way.losses, clear.losses, strict=True))
            times = way.seconds / clear.seconds
            print(f"{way.name}: losses within {100 * apart:.3f} % of those in the clear, {times:.1f} times the time")


if __name__ == "__main__":
    main()
