"""What serving takes is known before it is done, and refused before anything is allocated."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native import _testing
from hesplit_native.layer.costs import serving_cost

HEADER, FOOTER, HEAD = 64, 8, 12 + 32 + 32
BLOCKS = hn.Parameters(ring_degree=2048, modulus_bits=[50], scale=2.0**16, error_bound=0.5)
SLOTS = hn.Parameters(
    ring_degree=4096, modulus_bits=[35, 35, 36], scale=2.0**30, packing="slots", batch_size=8, error_bound=0.5
)
TRACES = hn.Parameters(
    ring_degree=8192, modulus_bits=[40] * 4, scale=2.0**77, packing="slots", batch_size=8, error_bound=0.5,
    private_bits=40, weight_norm=16.0,
)  # fmt: skip


MERGED = hn.Parameters(
    ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, packing="merged", batch_size=4, error_bound=0.5
)


def layer(params, d, o, *, seed=0, weight_gradients=False, link=1e9, **limits):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(o, d)) / np.sqrt(d)
    client = hn.LinearClient(hn.SecretKey.generate(params), d, o, weight_gradients=weight_gradients, link=link)
    material = client.public_material()
    return client, hn.LinearServer(material, w, rng.normal(size=o), **limits), material


def laid_out(request, rows, group, width, ciphertexts, size):
    """A request of another layout, all of whose ciphertexts are (0, c1): as long as it has to be, with a right checksum."""
    head = bytearray(request[: HEADER + HEAD])
    head[8:16] = struct.pack("<Q", HEADER + HEAD + ciphertexts * size + FOOTER)
    head[HEADER : HEADER + 12] = struct.pack("<III", rows, group, width)
    return _testing.reseal(bytes(head) + bytes(ciphertexts * size + FOOTER))


def ciphertext_bytes(params):
    one = serving_cost(params, 1, 1, 1, "forward").request_bytes
    return one - HEADER - FOOTER - HEAD


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 600), st.integers(1, 60)),
    packing=st.sampled_from(["blocks", "merged", "slots", "private"]),
    link=st.sampled_from([1e4, 1e9, 1e14]),
    gradients=st.booleans(),
)
@example(shape=(2049, 3, 2), packing="blocks", link=1e9, gradients=True)
@example(shape=(7, 1, 300), packing="blocks", link=1e9, gradients=False)
@example(shape=(8, 256, 5), packing="slots", link=1e9, gradients=True)
@example(shape=(1, 30, 5000), packing="merged", link=1e9, gradients=False)
@example(shape=(9, 40, 7), packing="merged", link=1e9, gradients=True)
@example(shape=(33, 600, 60), packing="private", link=1e9, gradients=False)
def test_bytes_are_known_in_advance(shape, packing, link, gradients):
    n, d, o = shape
    params = {"blocks": BLOCKS, "merged": MERGED, "slots": SLOTS, "private": TRACES}[packing]
    gradients = gradients and packing != "private"
    if packing == "slots" and gradients:
        n = min(n, 8)  # the rotation keys are for no more
    client, server, material = layer(params, d, o, weight_gradients=gradients, link=link)
    planned = {"link": link, "weight_gradients": gradients}
    assert len(material) == serving_cost(params, d, o, n, "public_material", **planned).request_bytes

    request = client.encrypt(np.random.default_rng(1).normal(size=(n, d)))
    told = server.cost(request, keep=gradients)
    reply, _, kept = server.forward_training(request, keep=gradients)
    assert (told.request_bytes, told.reply_bytes) == (len(request), len(reply))
    most = serving_cost(params, d, o, n, "training" if gradients else "forward", **planned)
    assert most.request_bytes == len(request)
    assert len(reply) <= most.reply_bytes <= 8 * len(reply)
    assert told.multiplications <= most.multiplications
    assert told.held_bytes == most.held_bytes
    if not gradients:
        return
    client.decrypt(reply, weight_gradient_follows=True)
    gradient = np.random.default_rng(2).normal(size=(n, o))
    message, masked = server.weight_gradient(kept, gradient)
    most = serving_cost(params, d, o, n, "weight_gradient", **planned)
    assert most == server.gradient_cost(kept)
    assert len(message) <= most.reply_bytes <= 3 * len(message)
    opened = client.open_weight_gradient(message, gradient)
    assert len(opened) <= serving_cost(params, d, o, n, "opened_gradient", **planned).request_bytes
    server.unmask(masked, opened)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40)), batch=st.integers(1, 20))
def test_bytes_of_sealed_weights_are_known_in_advance(shape, batch):
    n, d, o = shape
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=[50, 50], scale=2.0**45, error_bound=1.0, batch_size=batch, updates=2
    )
    rng = np.random.default_rng(0)
    w, b, x, g = (rng.normal(size=size) / 20 for size in ((o, d), (o,), (n, d), (n, o)))
    client = hn.SealedClient(hn.SecretKey.generate(params), d, o, weight_norm=4)
    sealed = client.seal(w, b)
    server = hn.SealedServer(sealed)
    assert serving_cost(params, d, o, n, "sealed_weight").request_bytes == len(sealed)
    assert len(server.saved()) == len(sealed)
    for kind, message, answer in (
        ("sealed_forward", client.encrypt(x), server.forward),
        ("sealed_gradient", client.update(g, w, b), server.update),
        ("sealed_update", client.update(g, w, b), server.update),
    ):
        told, most = server.cost(message), serving_cost(params, d, o, n, kind)
        reply = answer(message)
        assert (told.request_bytes, told.reply_bytes) == (len(message), len(reply))
        assert most.request_bytes == len(message)
        assert len(reply) <= most.reply_bytes <= 4 * len(reply)


# Short requests that lead to long replies: rows, features of the layer, outputs, samples of a group, width.
GREEDY = {
    "one feature, a ring of rows": (2048, 1, 16384, 2048, 1),
    "a group per row": (512, 2048, 512, 1, 2048),
    "one feature a ciphertext": (1024, 16, 4096, 1024, 1),
}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_requests_are_refused_before_work(name):
    n, d, o, group, width = GREEDY[name]
    client, server, _ = layer(BLOCKS, d, o, max_reply_bytes=4_000_000)
    size = ciphertext_bytes(BLOCKS)
    request = laid_out(client.encrypt(np.zeros((1, d))), n, group, width, -(-n // group) * -(-d // width), size)
    assert server.cost(request).reply_bytes > 4_000_000
    before, began = peak(), time.process_time()
    for keep in (False, True):
        with pytest.raises(hn.WireError, match="this server sends up to 4 MB"):
            server.forward_training(request, keep=keep)
    assert time.process_time() - began < 0.25
    assert peak() - before < 8_000  # kB
    # An honest client is served.
    x = np.random.default_rng(3).normal(size=(2, d))
    assert client.decrypt(server.forward(client.encrypt(x))).shape == (2, o)


def test_greedy_weight_gradients_are_refused_before_work():
    # Every feature has a ciphertext and every output a product: 512 * 64 ciphertexts from a request of 512.
    d, o, group = 512, 64, 2048
    client, server, _ = layer(BLOCKS, d, o, weight_gradients=True, max_reply_bytes=50_000_000)
    request = laid_out(client.encrypt(np.zeros((1, d))), group, group, 1, d, ciphertext_bytes(BLOCKS))
    _, rows, kept = server.forward_training(request, keep=True)
    assert server.gradient_cost(kept).reply_bytes > 400_000_000
    before, began = peak(), time.process_time()
    with pytest.raises(hn.WireError, match="this server sends up to 50 MB"):
        server.weight_gradient(kept, np.ones((rows, o)))
    assert time.process_time() - began < 0.5
    assert peak() - before < 50_000  # kB


def test_work_is_bounded_where_replies_are_short():
    # One output a product and three features an input: few bytes for so many products of polynomials.
    d, o = 300, 256
    client, server, _ = layer(BLOCKS, d, o, max_multiplications=3e8)
    x = np.random.default_rng(4).normal(size=(4, d))
    client.decrypt(server.forward(client.encrypt(x)))
    request = laid_out(client.encrypt(x), 600, 600, 3, d // 3, ciphertext_bytes(BLOCKS))
    assert server.cost(request).reply_bytes < 5_000_000
    with pytest.raises(hn.WireError, match="multiplications"):
        server.forward(request)


def test_a_layout_of_single_features_after_another():
    # Weights are multiplied with a power of x that follows from the width, and is kept: that of width 1 is 1.
    params = hn.Parameters(ring_degree=2048, modulus_bits=[53], scale=2.0**16, error_bound=0.5)
    client, _, material = layer(params, 8, 3)
    first = client.encrypt(np.ones((4, 8)))
    second = laid_out(first, 3, 3, 1, 8, ciphertext_bytes(params))
    weight, bias = np.ones((3, 8)), np.zeros(3)
    servers = [hn.LinearServer(material, weight, bias) for _ in range(2)]
    servers[0].forward(first)
    assert servers[0].forward(second) == servers[1].forward(second)


def test_limits_of_a_sealed_server():
    params = hn.Parameters(
        ring_degree=4096, modulus_bits=[50, 50], scale=2.0**45, error_bound=1.0, batch_size=2, updates=10
    )
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(20, 30)) / 10, rng.normal(size=20)
    client = hn.SealedClient(hn.SecretKey.generate(params), 30, 20, weight_norm=4)
    sealed = client.seal(w, b)
    limit = serving_cost(params, 30, 20, 2, "sealed_forward").reply_bytes
    server = hn.SealedServer(sealed, max_reply_bytes=limit)
    client.decrypt(server.forward(client.encrypt(rng.normal(size=(2, 30)))))
    with pytest.raises(hn.WireError, match="send smaller batches"):
        server.forward(client.encrypt(rng.normal(size=(64, 30))))
    with pytest.raises(hn.WireError, match="send smaller batches"):
        server.update(client.update(rng.normal(size=(64, 20)), w, b))
    with pytest.raises(hn.WireError, match="multiplications"):
        hn.SealedServer(sealed, max_multiplications=1e5).forward(client.encrypt(rng.normal(size=(2, 30))))


def test_memory_is_bounded_where_a_ring_has_many_primes():
    # Short messages: a modulus of many primes makes every weight of a matrix product, and every diagonal, so much larger.
    sizes = {"scale": 2.0**20, "security": "paper", "error_bound": 0.5, "activation_bound": 1, "activation_norm": 1}
    blocks = hn.Parameters(ring_degree=1024, modulus_bits=[60] * 16, **sizes)
    client, server, _ = layer(blocks, 256, 512, max_memory_bytes=30_000_000)
    request = laid_out(client.encrypt(np.zeros((1, 256))), 1024, 1024, 1, 256, ciphertext_bytes(blocks))
    assert server.cost(request).layer_bytes > 16_000_000
    before = peak()
    with pytest.raises(hn.WireError, match="of memory"):
        server.forward(request)
    assert peak() - before < 8_000  # kB

    slots = hn.Parameters(ring_degree=1024, modulus_bits=[60] * 5, packing="slots", **sizes)
    client = hn.LinearClient(hn.SecretKey.generate(slots), 64, 256)
    material = client.public_material()
    limit = serving_cost(slots, 64, 256, 1, "forward").layer_bytes
    with pytest.raises(hn.WireError, match="of memory"):
        hn.LinearServer(material, np.zeros((256, 64)), max_memory_bytes=limit)
    hn.LinearServer(material, np.zeros((256, 64)), max_memory_bytes=5 * limit)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("sealed_forward", BLOCKS, "sealed weights"),
        ("sealed_weight", SLOTS, "sealed weights"),
        ("forwards", BLOCKS, "no message"),
    ],
)
def test_kinds_that_parameters_cannot_serve(kind, params, message):
    with pytest.raises(hn.ParameterError, match=message):
        serving_cost(params, 4, 4, 1, kind)


@pytest.mark.parametrize(("d", "o", "rows"), [(0, 1, 1), (1, 2_000_000, 1), (1, 1, 0), (1, 1, 70000)])
def test_impossible_layers_have_no_cost(d, o, rows):
    with pytest.raises(hn.ParameterError):
        serving_cost(BLOCKS, d, o, rows, "forward")


def test_other_threads_go_on_while_costs_are_computed():
    """A peer's handshake may name the largest ring, whose tables take a tenth of a second."""
    turns, over, interval = [0], threading.Event(), sys.getswitchinterval()

    def count():
        while not over.is_set():
            turns[0] += 1
            time.sleep(0)

    beside = threading.Thread(target=count)
    beside.start()
    sys.setswitchinterval(1000)  # so that a thread has its turn only when another gives it
    try:
        before, tries = turns[0], 0
        while turns[0] == before and tries < 1000:
            serving_cost(BLOCKS, 4, 4, 1, "forward")
            tries += 1
        assert turns[0] > before
    finally:
        sys.setswitchinterval(interval)
        over.set()
        beside.join()


_MEASURE = """
import sys
import numpy as np
import hesplit_native as hn

n, d, o, packing, gradient = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "True"
hn.set_num_threads(1)
sizes = {
    "blocks": dict(ring_degree=2048, modulus_bits=[50], scale=2.0**16),
    "merged": dict(ring_degree=4096, modulus_bits=[50, 50], scale=2.0**20, batch_size=4),
    "slots": dict(ring_degree=4096, modulus_bits=[35, 35, 36], scale=2.0**30, batch_size=8),
    "private": dict(ring_degree=8192, modulus_bits=[40] * 4, scale=2.0**77, batch_size=8, private_bits=40, weight_norm=16.0),
}[packing]
params = hn.Parameters(packing=packing.replace("private", "slots"), error_bound=0.5, **sizes)
client = hn.LinearClient(hn.SecretKey.generate(params), d, o, weight_gradients=gradient)
server = hn.LinearServer(client.public_material(), np.ones((o, d)) / d)
request = client.encrypt(np.ones((n, d)))
cost = server.cost(request, keep=gradient)
told = cost.reply_bytes + cost.held_bytes + cost.layer_bytes + cost.working_bytes

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
reply, _, kept = server.forward_training(request, keep=gradient)
if gradient:
    cost = server.gradient_cost(kept)
    told += cost.reply_bytes + cost.held_bytes + cost.working_bytes
    server.weight_gradient(kept, np.ones((n, o)))
print(told, status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("n", "d", "o", "packing", "gradient"),
    [
        (512, 64, 512, "blocks", False),
        (64, 512, 128, "blocks", True),
        (4, 2000, 900, "blocks", False),
        (1, 100, 20000, "merged", False),
        (40, 300, 60, "merged", True),
        (1, 4000, 9000, "merged", False),
        (256, 256, 16, "slots", False),
        (8, 700, 5, "slots", True),
        (64, 1000, 40, "private", False),
    ],
)
def test_memory_stays_within_what_is_told(n, d, o, packing, gradient):
    # glibc otherwise serves some of it from what was free before, more or less of it by the length of the environment.
    environment = os.environ | {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={1 << 16}"}
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, (n, d, o, packing, gradient))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    told, used = map(int, run.stdout.split())
    assert used <= 1.1 * told + 4_000_000
    assert told <= 6 * used + 8_000_000
