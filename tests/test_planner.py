"""The planner's choices hold what they promise, and follow link and threads."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hesplit_native as hn
from hesplit_native.cli import app
from hesplit_native.cli.plan import bits_per_second
from hesplit_native.layer.planner import plans


@pytest.mark.parametrize(
    ("text", "expected"), [("100Mbit/s", 1e8), ("1G", 1e9), ("56k", 56e3), ("2.5 Gbps", 2.5e9), ("1000000", 1e6)]
)
def test_speeds(text, expected):
    assert bits_per_second(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "100 Mbyte", "-1M", "1e9"])
def test_other_speeds_are_errors(text):
    with pytest.raises(hn.ParameterError, match="100Mbit/s"):
        bits_per_second(text)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 200),
    d=st.integers(1, 600),
    o=st.integers(1, 40),
    link=st.sampled_from([1e6, 1e9, 1e12]),
    flooding=st.sampled_from(["off", "step"]),
)
def test_a_plan_is_what_a_client_does(n, d, o, link, flooding):
    best = plans(d, o, n, link=link, flooding=flooding, activation_bound=8.0, weight_norm=4.0)[0]
    fresh = flooding == "step"
    client = hn.LinearClient(hn.SecretKey.generate(best.parameters), d, o, fresh_keys=fresh, link=link)
    rng = np.random.default_rng(d)
    w = rng.normal(size=(o, d))
    w *= 2 / np.linalg.norm(w, axis=1).max()
    server = hn.LinearServer(client.public_material(), w, np.zeros(o))
    x = rng.normal(size=(n, d))
    request = client.encrypt(x)
    overhead = len(request) - best.request_bytes
    assert 0 < overhead < 500
    reply = server.forward(request)
    assert len(reply) <= best.reply_bytes + 500
    assert np.abs(client.decrypt(reply) - np.asarray(x) @ w.T).max() <= best.parameters.error_bound or client.clipped


def test_plans_are_sorted_and_every_ring_comes_once():
    found = plans(256, 5, 4, link=1e8)
    assert [plan.seconds for plan in found] == sorted(plan.seconds for plan in found)
    assert len({(plan.parameters.packing, plan.parameters.ring_degree) for plan in found}) == len(found) >= 3


def test_a_slow_link_takes_fewer_bytes_and_a_fast_one_less_work():
    slow, fast = (plans(2000, 50, 32, link=link)[0] for link in (1e6, 1e13))
    assert slow.request_bytes + slow.reply_bytes <= fast.request_bytes + fast.reply_bytes
    assert fast.client_seconds + fast.server_seconds <= slow.client_seconds + slow.server_seconds


def test_threads_are_for_work_that_is_worth_them():
    assert plans(4, 1, 1, cpus=8)[0].threads == 1
    assert plans(768, 768, 128, cpus=8)[0].threads == 8
    assert plans(768, 768, 128, cpus=1)[0].threads == 1


def test_what_no_set_holds_is_an_error():
    with pytest.raises(hn.ParameterError, match="raise error_bound"):
        plans(256, 5, 4, error_bound=1e-15)


@pytest.mark.parametrize("link", [0, -1, 1e20, float("nan")])
def test_absurd_links(link):
    with pytest.raises(hn.ParameterError, match="bits per second"):
        plans(10, 2, 1, link=link)


def test_the_command_explains_its_choice():
    result = CliRunner().invoke(app, ["plan", "256", "5", "--batch-size", "4", "--link", "100Mbit/s"])
    assert result.exit_code == 0, result.output
    for words in (
        "N = 2048",
        "26 + 27",
        "measured",
        "Chosen",
        "100 Mbit/s",
        "bfloat16",
        "hint, once",
        "in the clear here",
    ):
        assert words in result.output
    assert chosen(result) in [plan.parameters for plan in plans(256, 5, 4, link=1e8)]


def chosen(result):
    return hn.Parameters.from_bytes(bytes.fromhex(result.output.split("fromhex('")[1].split("'")[0]))


@pytest.mark.parametrize("fastest", [2048, 4096])
def test_the_command_chooses_by_what_it_measured(monkeypatch, fastest):
    def measured(plan, *_):
        seconds = 1e-6 if plan.parameters.ring_degree == fastest else 1.0
        return dataclasses.replace(plan, client_seconds=seconds, server_seconds=seconds)

    monkeypatch.setattr("hesplit_native.cli.plan._measured", measured)
    result = CliRunner().invoke(app, ["plan", "256", "5", "--batch-size", "4"])
    assert result.exit_code == 0, result.output
    assert chosen(result).ring_degree == fastest


def test_large_layers_are_planned_without_preparing_them_frozen(monkeypatch):
    monkeypatch.setattr("hesplit_native.cli.plan._measured", lambda plan, *_: plan)
    result = CliRunner().invoke(app, ["plan", "5000", "5000"])
    assert result.exit_code == 0, result.output
    assert "do not change" not in result.output


def test_the_command_plans_for_private_weights(monkeypatch):
    monkeypatch.setattr("hesplit_native.cli.plan._measured", lambda plan, *_: plan)
    result = CliRunner().invoke(app, ["plan", "256", "5", "--private-weights"])
    assert result.exit_code == 0, result.output
    assert "what hides weights" in result.output
    found = re.search(r"fromhex\('(\w+)'\)", result.output)
    assert found is not None
    params = hn.Parameters.from_bytes(bytes.fromhex(found[1]))
    assert (params.private_bits, params.weight_norm) == (40, 16.0)


def test_slow_links_take_short_replies():
    fast, slow = (plans(128, 4096, 1, link=link, cpus=1)[0] for link in (1e10, 1e7))
    assert (fast.parameters.packing, slow.parameters.packing) == ("blocks", "merged")
    assert slow.key_bytes > 0 == fast.key_bytes
    for options in ({"flooding": "step"}, {"private_weights": True}):
        assert {plan.parameters.packing for plan in plans(128, 400, 1, link=1e7, **options)} == {"blocks"}
