"""The server chooses bits and scale of a reply: a client refuses those that cannot say logits to the agreed bound."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native import _core, _testing

HEADER = 64
SHAPE = {"in_features": 40, "out_features": 6, "batch_size": 4}
SETS = {
    "blocks": lambda: hn.Parameters.recommend(**SHAPE),
    "private blocks": lambda: hn.Parameters.recommend(**SHAPE, private_weights=True),
    "merged": lambda: hn.Parameters.recommend(**SHAPE | {"out_features": 300}, packing="merged"),
    "slots": lambda: hn.Parameters.recommend(**SHAPE, packing="slots"),
    "private slots": lambda: hn.Parameters.recommend(**SHAPE, packing="slots", private_weights=True),
}
DEVIATIONS = {"slots": 19.2, "private slots": 19.2}  # products of two noises, else 7.5


@pytest.fixture(params=SETS)
def layer(request):
    params = SETS[request.param]()
    outputs = 300 if request.param == "merged" else 6
    client = hn.LinearClient(hn.SecretKey.generate(params), 40, outputs)
    server = hn.LinearServer(client.public_material(), np.full((outputs, 40), 0.5), np.zeros(outputs))
    return request.param, client, server


def with_head(reply: bytes, scale: float, bits: int | None = None) -> bytes:
    changed = bytearray(reply)
    if bits is not None:
        changed[HEADER + 12] = bits
    changed[HEADER + 13 : HEADER + 21] = struct.pack("<d", scale)
    return _testing.reseal(bytes(changed))


def rounding(name: str, params: hn.Parameters, layout: dict) -> float:
    """What rounding the polynomials of a reply does to a logit at least, in units of their last bit."""
    n = params.ring_degree
    deviation = np.sqrt((2 * n / 3 + 6 * np.sqrt(2 * n / 9) + 1) / 12)
    spread = {"slots": np.sqrt(n / 2 * np.ceil(layout["width"] / layout.get("period", 1)))}
    if name == "private slots":
        spread[name] = layout["width"] * np.sqrt(n / layout["width"] - 1)
    return DEVIATIONS.get(name, 7.5) * deviation * spread.get(name, 1.0)


def test_the_coarsest_scale_is_that_of_the_error_bound(layer):
    name, client, server = layer
    params = client.parameters
    layout = params.estimate(40, server.out_features, 4)["layout"]
    reply = server.forward(client.encrypt(np.ones((4, 40))))
    for share in (0.2, 0.6, 0.95):
        with pytest.raises(hn.WireError, match="too coarse"):
            client.decrypt(with_head(reply, share * rounding(name, params, layout) / params.error_bound))
    assert np.abs(client.decrypt(reply) - 20).max() <= params.error_bound  # still outstanding


@pytest.mark.parametrize("bits", [1, 2, 8, 12])
def test_a_scale_that_the_bits_do_not_hold(layer, bits):
    """Few bits, and a scale as if there were more."""
    _, client, server = layer
    reply = server.forward(client.encrypt(np.ones((4, 40))))
    with pytest.raises(hn.WireError, match="too coarse"):
        client.decrypt(with_head(reply, 1e9, bits))


def test_a_whole_reply_whose_bits_do_not_hold_its_scale():
    """As one that was accepted: every logit would be within a hair of 0."""
    params = SETS["blocks"]()
    client = hn.LinearClient(hn.SecretKey.generate(params), 40, 6)
    server = hn.LinearServer(client.public_material(), np.full((6, 40), 0.5), np.zeros(6))
    request = client.encrypt(np.ones((4, 40)))
    honest = _core.inspect_reply(server._native, server.forward(request))
    zeros = [(np.zeros_like(each["c0"]), np.zeros_like(each["c1"])) for each in honest["ciphertexts"]]
    with pytest.raises(hn.WireError, match="too coarse"):
        client.decrypt(_core.forge_reply(server._native, request, 8, 1e9, zeros))


@pytest.mark.parametrize("name", SETS)
def test_the_smallest_weights_are_precise_enough(name):
    """Weights of 0 fill the range with no logit at all: the largest scale that a server has."""
    params = SETS[name]()
    outputs = 300 if name == "merged" else 6
    client = hn.LinearClient(hn.SecretKey.generate(params), 40, outputs)
    server = hn.LinearServer(client.public_material(), np.zeros((outputs, 40)), np.zeros(outputs))
    assert np.abs(client.decrypt(server.forward(client.encrypt(np.ones((4, 40)))))).max() <= params.error_bound
