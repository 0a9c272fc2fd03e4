"""What clients keep between request and reply, under threads: keys, outstanding requests, encryptions made ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import hesplit_native as hn
from hesplit_native import _core
from hesplit_native.layer.linear import SealedClient, SealedServer

OUTSTANDING = 4096  # requests that a client remembers
FEATURES, OUTPUTS = 12, 3


@dataclass
class Layer:
    client: Any
    server: Any
    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    error: float

    def batch(self, seed: int) -> npt.NDArray[np.float64]:
        return np.random.default_rng(seed).uniform(-1, 1, size=(2, FEATURES))

    def right(self, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> bool:
        return bool(np.abs(y - (x @ self.weight.T + self.bias)).max() <= self.error)


def make(kind: str) -> Layer:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(OUTPUTS, FEATURES)) / 4, rng.normal(size=OUTPUTS) / 4
    if kind == "sealed":
        params = hn.Parameters.recommend_sealed(
            in_features=FEATURES, out_features=OUTPUTS, batch_size=2, activation_bound=8.0
        )
        sealed = SealedClient(hn.SecretKey.generate(params), FEATURES, OUTPUTS)
        return Layer(sealed, SealedServer(sealed.seal(weight, bias)), weight, bias, sealed.error)
    params = hn.Parameters.recommend(
        in_features=FEATURES, out_features=OUTPUTS, batch_size=2, activation_bound=8.0,
        packing=kind if kind in ("merged", "slots") else "blocks",
    )  # fmt: skip
    client = hn.LinearClient(hn.SecretKey.generate(params), FEATURES, OUTPUTS, fresh_keys=kind == "fresh keys")
    return Layer(client, hn.LinearServer(client.public_material(), weight, bias), weight, bias, params.error_bound)


KINDS = ["blocks", "fresh keys", "merged", "slots", "sealed"]


@pytest.fixture(params=[True, False], ids=["ahead", "not ahead"])
def ahead(request):
    before = _core.work_ahead()
    _core.set_work_ahead(request.param)
    yield request.param
    _core.set_work_ahead(before)


@pytest.mark.parametrize("kind", ["blocks", "sealed"])
def test_the_oldest_of_too_many_requests_is_forgotten_and_no_other(kind):
    layer = make(kind)
    x = layer.batch(1)
    requests = [layer.client.encrypt(x) for _ in range(OUTSTANDING + 2)]
    for forgotten in requests[:2]:
        with pytest.raises(hn.KeyMismatchError, match="did not make"):
            layer.client.decrypt(layer.server.forward(forgotten))
    for remembered in (requests[2], requests[3], requests[OUTSTANDING // 2], requests[-1]):
        assert layer.right(layer.client.decrypt(layer.server.forward(remembered)), x)
    # Room was made by answering: nothing else is forgotten.
    layer.client.encrypt(x)
    assert layer.right(layer.client.decrypt(layer.server.forward(requests[4])), x)


@pytest.mark.parametrize("kind", KINDS)
def test_many_requests_of_many_threads(kind, ahead):
    layer = make(kind)

    def work(worker: int) -> bool:
        batches = [layer.batch(100 * worker + i) for i in range(20)]
        requests = [layer.client.encrypt(x) for x in batches]
        replies = [layer.server.forward(request) for request in requests]
        order = np.random.default_rng(worker).permutation(len(batches))
        return all(layer.right(layer.client.decrypt(replies[i]), batches[i]) for i in order)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_threads_with_the_same_reply_one_opens_it(kind):
    layer = make(kind)
    for attempt in range(30):
        x = layer.batch(attempt)
        reply = layer.server.forward(layer.client.encrypt(x))
        barrier = threading.Barrier(4)

        def open_it(reply: bytes = reply, x: Any = x, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                return layer.right(layer.client.decrypt(reply), x)
            except hn.KeyMismatchError:
                return False

        with ThreadPoolExecutor(4) as pool:
            results = [future.result() for future in [pool.submit(open_it) for _ in range(4)]]
        assert results.count(True) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_is_not_genuine_may_be_followed_by_one_that_is(kind):
    layer = make(kind)
    x = layer.batch(1)
    reply = layer.server.forward(layer.client.encrypt(x))
    for damaged in (reply[:-1], reply[:-1] + bytes([reply[-1] ^ 1])):
        with pytest.raises(hn.WireError):
            layer.client.decrypt(damaged)
    assert layer.right(layer.client.decrypt(reply), x)


def until_destroyed(call: Callable[[int], object]) -> int:
    """How many calls succeed before the first one that says that the key was destroyed."""
    for i in range(100_000):
        try:
            call(i)
        except hn.KeyMismatchError as error:
            if "destroyed" not in str(error):
                raise
            return i
    raise AssertionError("the key was never destroyed")


@pytest.mark.parametrize("attempt", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_destroying_a_client_that_others_use(kind, attempt, ahead):
    """Calls end with a right result or a typed error, and after destroy() there is no key left to use."""
    layer = make(kind)
    batches = [layer.batch(i) for i in range(60)]
    replies = [layer.server.forward(layer.client.encrypt(x)) for x in batches]
    begun = threading.Semaphore(0)

    def decrypt(part: int) -> int:
        def one(i: int) -> None:
            begun.release()
            mine = 3 * i + part
            if mine < len(batches):
                assert layer.right(layer.client.decrypt(replies[mine]), batches[mine])
            else:
                layer.client.decrypt(layer.server.forward(layer.client.encrypt(batches[0])))

        return until_destroyed(one)

    with ThreadPoolExecutor(5) as pool:
        decrypting = [pool.submit(decrypt, part) for part in range(3)]
        encrypting = [pool.submit(until_destroyed, lambda i: layer.client.encrypt(batches[i % 60])) for _ in range(2)]
        for _ in range(3 + 2 * attempt):
            begun.acquire()
        layer.client.destroy()
        for future in decrypting + encrypting:
            future.result()
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        layer.client.encrypt(batches[0])
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        layer.client.decrypt(replies[-1])
    layer.client.destroy()  # twice does no harm


@pytest.mark.parametrize("attempt", range(10))
def test_a_key_that_is_destroyed_while_others_read_it(attempt):
    params = hn.Parameters(ring_degree=8192, modulus_bits=[60], scale=2.0**30)
    key = hn.SecretKey.generate(params)._native
    whole = bytes(key.to_bytearray())
    barrier = threading.Barrier(3)

    def read(i: int) -> None:
        if i == 0:
            barrier.wait()
        assert bytes(key.to_bytearray()) == whole  # never a key of which a part is gone

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(until_destroyed, read) for _ in range(2)]
        barrier.wait()
        key.destroy()
        for reader in readers:
            reader.result()


def test_sealed_requests_beside_updates_and_refreshes(ahead):
    """Replies are right, or refused where the server had other weights by then."""
    layer = make("sealed")
    client, server = layer.client, layer.server
    stop = threading.Event()

    def ask(worker: int) -> int:
        asked = answered = 0
        while not stop.is_set() or answered == 0:
            x = layer.batch(1000 * worker + asked)
            asked += 1
            try:
                y = client.decrypt(server.forward(client.encrypt(x)))
            except hn.KeyMismatchError:
                continue
            assert layer.right(y, x)
            answered += 1
        return answered

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, worker) for worker in range(3)]
        try:
            for step in range(30):
                if step % 10 == 0:
                    server.refresh(client.seal(layer.weight, layer.bias))
                gradient = np.random.default_rng(step).normal(size=(2, OUTPUTS))
                dx = client.decrypt_input_gradient(server.update(client.update(gradient, layer.weight, layer.bias)))
                np.testing.assert_allclose(dx, gradient @ layer.weight, atol=1e-2)
        finally:
            stop.set()
        assert all(future.result() > 0 for future in asking)
