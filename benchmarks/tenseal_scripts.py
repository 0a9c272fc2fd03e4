"""Training scripts in the form of both papers' own, on TenSEAL or on `hesplit_native.tenseal`: one import says which.

    python -m benchmarks.tenseal_scripts                   # a hundred steps of each script on hesplit_native.tenseal
    python -m benchmarks.tenseal_scripts --against tenseal # and three on TenSEAL, if that is installed, side by side

Client and server are processes that talk over a socket; what is plain is pickled, as in those scripts. Every step the client
decrypts the logits and the server, which here also sees the activations for that purpose, is checked against plain ones.

`splitways`: activations encrypted as a batch, dJ/dy and dJ/dW in the clear, dJ/da encrypted by the server under the public context.
`hesplit`: activations and their transpose encrypted, dJ/dW and the new W as ciphertexts, which the client decrypts.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import pickle
import socket
import struct
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

BATCH, FEATURES, CLASSES, RATE = 4, 256, 5, 0.01


class Link:
    """Objects over a socket, counted."""

    def __init__(self, end):
        self.end, self.bytes = end, 0

    def send(self, thing):
        data = thing if isinstance(thing, bytes) else pickle.dumps(thing)
        self.end.sendall(struct.pack("<Q", len(data)) + data)
        self.bytes += len(data)

    def receive(self):
        (size,) = struct.unpack("<Q", self._exactly(8))
        self.bytes += size
        return self._exactly(size)

    def plain(self):
        return pickle.loads(self.receive())  # noqa: S301 (both ends are this script, as in the papers')

    def _exactly(self, size):
        parts = bytearray()
        while len(parts) < size:
            part = self.end.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise ConnectionError("the other end is gone")
            parts += part
        return bytes(parts)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3), nn.LeakyReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 8, 5, padding=2), nn.LeakyReLU(), nn.MaxPool1d(2), nn.Flatten(),
    )  # fmt: skip


def batches(steps):
    """Noisy waves of five frequencies."""
    rng = np.random.default_rng(0)
    at = np.linspace(0, 1, 128)
    for _ in range(steps):
        y = rng.integers(0, CLASSES, BATCH)
        x = np.sin(2 * np.pi * (y[:, None] + 1) * at + rng.uniform(0, 6, (BATCH, 1))) + 0.2 * rng.normal(
            size=(BATCH, 128)
        )
        yield torch.tensor(x[:, None], dtype=torch.float32), torch.tensor(y)


def first_weights():
    rng = np.random.default_rng(1)
    bound = FEATURES**-0.5
    return rng.uniform(-bound, bound, (CLASSES, FEATURES)), rng.uniform(-bound, bound, CLASSES)


def make_context(ts):
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=4096, coeff_mod_bit_sizes=[40, 20, 20])
    context.global_scale = 2**21
    context.generate_galois_keys()
    return context


def encrypted_batch(ts, context, matrix):
    """Rows are the batch; a matrix of one row for `mm`."""
    tensor = ts.ckks_tensor(context, matrix.tolist(), batch=True)
    return tensor.reshape_([1, matrix.shape[1]])


def received(ts, link, context):
    return ts.tensors.ckkstensor.CKKSTensor.load(context, link.receive())


def client(ts, link, steps, step):
    """Train by a script's `step`; yields each step's seconds, bytes, loss and error of the logits."""
    context = make_context(ts)
    link.send(context.serialize(save_secret_key=False))
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for x, y in batches(steps):
        begun, before = perf_counter(), link.bytes
        a = net(x)
        logits, loss, gradient = step(ts, link, context, a.detach(), y)
        optimizer.zero_grad()
        a.backward(gradient)
        optimizer.step()
        spent, used = perf_counter() - begun, link.bytes - before
        yield spent, used, loss, error_of(link, a.detach(), logits)


def judged(logits, y):
    """Decrypted logits, their loss, and dJ/dy."""
    logits = torch.tensor(logits.decrypt().tolist(), dtype=torch.float32).reshape(len(y), CLASSES).requires_grad_()
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    return logits.detach(), loss.item(), logits.grad


def error_of(link, a, logits):
    """How far logits are from plain ones, which the server computes. Not part of the step."""
    link.send(a.numpy())
    return float(np.abs(logits.numpy() - link.plain()).max())


def checked(link, w, b):
    """The server's part of `error_of`."""
    link.send(link.plain() @ w.T + b)


def splitways_step(ts, link, context, a, y):
    link.send(encrypted_batch(ts, context, a).serialize())
    logits, loss, gradient = judged(received(ts, link, context), y)
    link.send({"dy": gradient.numpy(), "dw": (gradient.T @ a).numpy()})
    da = received(ts, link, context).decrypt().tolist()
    return logits, loss, torch.tensor(da, dtype=torch.float32).reshape(a.shape)


def splitways_server(ts, link, steps):
    context = ts.Context.load(link.receive())
    w, b = first_weights()
    for _ in range(steps):
        a = received(ts, link, context)
        link.send((a.mm(w.T.tolist()) + b.tolist()).serialize())
        told = link.plain()
        link.send(ts.ckks_tensor(context, (told["dy"] @ w).tolist(), batch=True).serialize())
        checked(link, w, b)
        w -= RATE * told["dw"]
        b -= RATE * told["dy"].sum(0)


def hesplit_step(ts, link, context, a, y):
    link.send(encrypted_batch(ts, context, a).serialize())
    link.send(encrypted_batch(ts, context, a.T).serialize())
    logits, loss, gradient = judged(received(ts, link, context), y)
    link.send(gradient.numpy())
    w = received(ts, link, context).decrypt().tolist()
    link.send(np.array(w).reshape(FEATURES, CLASSES).T)
    return logits, loss, torch.tensor(link.plain(), dtype=torch.float32)


def hesplit_server(ts, link, steps):
    context = ts.Context.load(link.receive())
    w, b = first_weights()
    for _ in range(steps):
        a = received(ts, link, context)
        transposed = received(ts, link, context)
        link.send((a.mm(w.T.tolist()) + b.tolist()).serialize())
        gradient = link.plain()
        # A ciphertext minus a ciphertext of the same shape: W's is made under the public context. The step goes into the plain
        # factor, as a second product would not fit the modulus of TenSEAL.
        update = encrypted_batch(ts, context, w.T) - transposed.mm((RATE * gradient).tolist())
        link.send(update.serialize())
        new = link.plain()
        link.send(gradient @ w)
        checked(link, w, b)
        w = new
        b = b - RATE * gradient.sum(0)


SCRIPTS = {"splitways": (splitways_step, splitways_server), "hesplit": (hesplit_step, hesplit_server)}


def serve(script, engine, end, steps):
    torch.set_num_threads(1)
    SCRIPTS[script][1](importlib.import_module(engine), Link(end), steps)


def run(script, engine, steps):
    """The steps' seconds, bytes, losses and errors, with client and server in two processes."""
    here, there = socket.socketpair()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(script, engine, there, steps), daemon=True
    )
    server.start()
    there.close()
    torch.set_num_threads(1)  # the network is small, and other work is on these cores
    with here:
        rows = list(client(importlib.import_module(engine), Link(here), steps, SCRIPTS[script][0]))
    server.join(60)
    return [np.array(column) for column in zip(*rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--against", choices=["tenseal"], help="Also run on TenSEAL, for so many steps as --their-steps."
    )
    parser.add_argument("--their-steps", type=int, default=3)
    arguments = parser.parse_args()
    for script in SCRIPTS:
        plans = [("hesplit_native.tenseal", arguments.steps)]
        if arguments.against:
            plans.append((arguments.against, arguments.their_steps))
        found = []
        for engine, steps in plans:
            seconds, sizes, losses, errors = run(script, engine, steps)
            found.append((median(seconds), median(sizes)))
            print(
                f"{script:<10} {engine:<23} {steps:>4} steps  {1e3 * median(seconds):9.2f} ms  {median(sizes) / 1e3:10.1f} kB a step  "
                f"logits within {errors.max():.1e}  loss {losses[:10].mean():.3f} -> {losses[-10:].mean():.3f}"
            )
        if len(found) > 1:
            print(
                f"{script:<10} {found[1][0] / found[0][0]:.0f} times faster, {found[1][1] / found[0][1]:.0f} times fewer bytes"
            )


if __name__ == "__main__":
    main()
