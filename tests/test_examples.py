"""The examples run as they are, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def output_of(name):
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def numbers(text, pattern):
    return [float(number) for match in re.finditer(pattern, text) for number in match.groups()]


def test_every_example_is_short_and_tested():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:2] for name in names] == [f"{index:02}" for index in range(1, len(names) + 1)]
    for name in names:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60
        assert name in Path(__file__).read_text(encoding="utf-8")


def test_classifier_head():
    agree, sent, clear = numbers(output_of("01_classifier_head.py"), r"(\d+) of 5000 .*, (\d+) bytes .*: (\d+)\)")
    assert agree >= 4999
    # The hint is fetched, not sent.
    assert sent < 1.6 * clear


def test_resnet():
    text = output_of("02_resnet.py")
    pairs = re.findall(r"clear ([\d.]+), on ciphertexts ([\d.]+)", text)
    assert len(pairs) == 10
    for clear, ours in pairs:
        assert float(ours) == pytest.approx(float(clear), rel=1e-3)
    assert float(pairs[-1][1]) < float(pairs[0][1])


def test_gpt2_generates_the_same_tokens():
    pytest.importorskip("transformers")
    tokens = re.findall(r"\[[\d, ]+\]", output_of("03_gpt2_generate.py"))
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]
    assert tokens[0].count(",") == 15


def test_lora_learns_as_in_the_clear():
    pytest.importorskip("peft")
    text = output_of("04_lora.py")
    losses = re.findall(r"clear ([\d.]+), on ciphertexts ([\d.]+)", text)
    assert len(losses) == 20
    for clear, ours in losses:
        assert float(ours) == pytest.approx(float(clear), rel=0.001)
    assert float(losses[-1][1]) < float(losses[0][1]) - 0.6


def test_bert_probe():
    pytest.importorskip("transformers")
    text = output_of("05_bert_probe.py")
    assert numbers(text, r"at most ([\d.e-]+),")[0] < 1e-4
    ours, clear = numbers(text, r"([\d.]+) on ciphertexts, ([\d.]+) in the clear")
    assert ours == pytest.approx(clear, abs=0.05)
    assert ours > 0.7


def test_own_data():
    pytest.importorskip("torchmetrics")
    assert len((EXAMPLES / "06_own_data.py").read_text(encoding="utf-8").splitlines()) <= 25
    text = output_of("06_own_data.py")
    for protocol in ("splitways", "sealed"):
        assert numbers(text, rf"{protocol}: AUROC ([\d.]+) after")[0] > 0.95


def test_vertical_learns_what_the_network_in_one_place_learns():
    text = output_of("07_vertical.py")
    local, vertical = (numbers(text, rf"{protocol}: ([\d.]+)% of customers")[0] for protocol in ("local", "vertical"))
    assert local > 80
    assert vertical > local - 5


def test_search_finds_what_it_finds_in_the_clear():
    text = output_of("08_search.py")
    ours, clear = re.findall(r"(\[[\d, ]+\])", text)[:2]
    assert ours == clear
    assert ours.startswith("[17000,")
    up, down = numbers(text, r"(\d+) bytes up, (\d+) down")
    assert up < 40_000
    assert down < 200_000
