"""Messages in memory that another thread writes to meanwhile: refused as a whole or read as a whole."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest

import hesplit_native as hn

ROUNDS = 60


@contextmanager
def flickering(message: bytes):
    """The message in a bytearray, of which a thread changes a byte to and fro."""
    shared, done = bytearray(message), threading.Event()
    at = len(shared) * 2 // 3

    def change():
        while not done.is_set():
            shared[at] ^= 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield shared
    finally:
        done.set()
        thread.join()


def seen(read, message: bytes, rounds: int = ROUNDS):
    """What `read` made of the message whenever it did not refuse it, until it was read a few times."""
    results = []
    with flickering(message) as shared:
        for _ in range(20_000):
            try:
                results.append(read(shared))
            except hn.WireError:  # the checksum says so
                continue
            if len(results) >= rounds:
                break
    assert results
    return results


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    n, d, o = 64, 64, 64
    params = hn.Parameters.recommend(in_features=d, out_features=o, batch_size=n)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o)
    w = rng.normal(size=(o, d)) / 8
    return client, hn.LinearServer(client.public_material(), w, np.zeros(o)), rng.normal(size=(n, d)), w


def test_replies(layer):
    client, server, x, w = layer
    for _ in range(20):
        reply = server.forward(client.encrypt(x))
        (y,) = seen(client.decrypt, reply, rounds=1)  # a request is answered once
        assert np.abs(y - x @ w.T).max() <= client.parameters.error_bound


def test_requests(layer):
    client, server, x, _ = layer
    request = client.encrypt(x)
    right = server.forward(request)
    assert all(reply == right for reply in seen(server.forward, request))


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))[:]])
def test_whatever_has_bytes_is_read(layer, form):
    client, server, x, w = layer
    y = client.decrypt(form(server.forward(form(client.encrypt(x)))))
    assert np.abs(y - x @ w.T).max() <= client.parameters.error_bound


def test_strides_are_refused(layer):
    client, server, x, _ = layer
    reply = bytearray(np.repeat(np.frombuffer(server.forward(client.encrypt(x)), np.uint8), 2).tobytes())
    with pytest.raises(hn.WireError, match="contiguous"):
        client.decrypt(memoryview(reply)[::2])
