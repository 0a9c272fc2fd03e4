"""Work done ahead of a request: it changes nothing but the time, and no randomness is used twice."""

from __future__ import annotations

import os

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native import _core, _testing
from hesplit_native.layer.linear import SealedClient, SealedServer

SEED = slice(76, 108)  # after the header and the shape
ANNOUNCED = slice(108, 140)


@pytest.fixture(params=[True, False], ids=["ahead", "not ahead"])
def ahead(request):
    before = _core.work_ahead()
    _core.set_work_ahead(request.param)
    yield request.param
    _core.set_work_ahead(before)


def layer(n, d, o, *, fresh=False, releases=0, packing="blocks"):
    rng = np.random.default_rng(n + d + o)
    params = hn.Parameters.recommend(
        in_features=d, out_features=o, batch_size=n, packing=packing, releases=releases, activation_bound=8.0
    )
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, fresh_keys=fresh)
    w, b = rng.normal(size=(o, d)) / np.sqrt(d), rng.normal(size=o)
    return params, client, hn.LinearServer(client.public_material(), w, b), w, b


@pytest.mark.parametrize(("n", "d", "o"), [(4, 256, 5), (3, 40, 30), (2100, 3, 2), (16, 700, 2)])
@pytest.mark.parametrize("packing", ["blocks", "merged", "slots"])
def test_steps_with_changing_weights_are_right(ahead, n, d, o, packing):
    params, client, server, w, b = layer(n, d, o, packing=packing)
    rng = np.random.default_rng(1)
    for _step in range(4):
        x = rng.normal(size=(n, d)) / 2
        y = client.decrypt(server.forward(client.encrypt(x)))
        assert np.abs(y - (x @ w.T + b)).max() <= params.error_bound
        w = w + rng.normal(size=w.shape) / 50
        server.set_weight(w, b)


def test_shapes_may_change_from_request_to_request(ahead):
    params, client, server, w, b = layer(4, 60, 5)
    rng = np.random.default_rng(2)
    for n in (4, 4, 1, 9, 4, 300, 4):
        x = rng.normal(size=(n, 60)) / 2
        y = client.decrypt(server.forward(client.encrypt(x)))
        assert np.abs(y - (x @ w.T + b)).max() <= params.error_bound
        server.set_weight(w, b)


def test_several_requests_under_way(ahead):
    params, client, server, w, b = layer(4, 60, 5)
    batches = [np.random.default_rng(i).normal(size=(4, 60)) / 2 for i in range(5)]
    requests = [client.encrypt(x) for x in batches]
    server.set_weight(w, b)
    for x, request in reversed(list(zip(batches, requests, strict=True))):
        assert np.abs(client.decrypt(server.forward(request)) - (x @ w.T + b)).max() <= params.error_bound


def test_seeds_are_announced_and_used_once(ahead):
    _, client, _, _, _ = layer(4, 60, 5)
    x = np.zeros((4, 60))
    requests = [client.encrypt(x) for _ in range(20)]
    seeds = [request[SEED] for request in requests]
    assert len(set(seeds)) == 20
    announced = [request[ANNOUNCED] for request in requests]
    if ahead:
        # On busy cores the client may leave work ahead out for a while, and then announces nothing; never at first.
        assert announced[0] == seeds[1]
        assert all(a in (bytes(32), seed) for a, seed in zip(announced, seeds[1:], strict=False))
    else:
        assert announced == [bytes(32)] * 20


def test_a_false_announcement_changes_nothing():
    _core.set_work_ahead(True)
    params, client, server, w, b = layer(4, 60, 5)
    x = np.random.default_rng(3).normal(size=(4, 60)) / 2
    for false in (os.urandom(32), b"\1" * 32):
        request = client.encrypt(x)
        forged = _testing.reseal(request[: ANNOUNCED.start] + false + request[ANNOUNCED.stop :])
        client.decrypt(server.forward(forged))
        server.set_weight(w, b)
        assert np.abs(client.decrypt(server.forward(client.encrypt(x))) - (x @ w.T + b)).max() <= params.error_bound


def test_fresh_keys_made_ahead_differ(ahead):
    params = hn.Parameters.recommend(in_features=60, out_features=5, batch_size=4, releases=1, activation_bound=8.0)
    client = hn.LinearClient(hn.SecretKey.generate(params), 60, 5, fresh_keys=True)
    keys = [client.encrypt(np.zeros((4, 60)))[32:48] for _ in range(10)]
    assert len(set(keys)) == 10


def test_destroying_a_client_that_works_ahead(ahead):
    _, client, server, _, _ = layer(4, 60, 5)
    reply = server.forward(client.encrypt(np.zeros((4, 60))))
    client.destroy()
    with pytest.raises(hn.KeyMismatchError, match="destroyed"):
        client.encrypt(np.zeros((4, 60)))
    with pytest.raises(hn.KeyMismatchError):
        client.decrypt(reply)


def test_sealed_steps(ahead):
    d, o, n = 30, 3, 4
    params = hn.Parameters.recommend_sealed(in_features=d, out_features=o, batch_size=n, activation_bound=8.0)
    client = SealedClient(hn.SecretKey.generate(params), d, o)
    rng = np.random.default_rng(4)
    w, b = rng.normal(size=(o, d)) / 6, rng.normal(size=o)
    server = SealedServer(client.seal(w, b))
    seeds = set()
    for step in range(5):
        x, gradient = rng.normal(size=(n, d)) / 2, rng.normal(size=(n, o)) / n
        request = client.encrypt(x)
        y = client.decrypt(server.forward(request))
        assert np.abs(y - (x @ w.T + b)).max() <= client.error
        w2, b2 = w - 0.01 * gradient.T @ x, b - 0.01 * gradient.sum(0)
        update = client.update(gradient, w2, b2)
        got = client.decrypt_input_gradient(server.update(update))
        np.testing.assert_allclose(got, gradient @ w, atol=1e-2)
        w, b = w2, b2
        seeds |= {request[SEED], update[SEED]}
        assert len(seeds) == 2 * (step + 1)
    client.destroy()
    with pytest.raises(hn.KeyMismatchError):
        client.encrypt(x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_works_and_shares_no_randomness():
    _core.set_work_ahead(True)
    params, client, server, w, b = layer(4, 60, 5)
    x = np.random.default_rng(5).normal(size=(4, 60)) / 2
    client.decrypt(server.forward(client.encrypt(x)))
    server.set_weight(w, b)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seeds = b""
        for _ in range(2):
            request = client.encrypt(x)
            right = np.abs(client.decrypt(server.forward(request)) - (x @ w.T + b)).max() <= params.error_bound
            server.set_weight(w, b)
            seeds += request[SEED] if right else bytes(32)
        os.write(write, seeds)
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(read, 100)
    theirs = {found[:32], found[32:]}
    ours = {client.encrypt(x)[SEED] for _ in range(2)}
    assert len(theirs | ours) == 4
    assert bytes(32) not in theirs
