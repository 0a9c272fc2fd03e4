"""A federation of separate processes under TLS, as hospitals would have it; what may happen on the way is in test_flower.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", reason="NO FLOWER: install the extra `flower`")

from benchmarks.flower_processes import SITES, federation, rounds, scores


def test_three_sites_a_superlink_and_a_server(tmp_path):
    with federation(tmp_path) as running:
        assert running.run(**{"num-server-rounds": 1}).wait(300) == 0
        log = running.said("run")
        assert rounds(log) == [(len(SITES), 0)], log
        assert len(scores(log)) == 1
        assert 0 <= scores(log, "auroc")[0] <= 1
    layers = [load_file(path) for path in sorted((tmp_path / "layers").glob("*.safetensors"))]
    networks = [load_file(path) for path in sorted((tmp_path / "state").glob("*/network.safetensors"))]
    for found in (layers, networks):
        assert len(found) == len(SITES)
        for other in found[1:]:
            assert all(torch.equal(other[name], value) for name, value in found[0].items())
    assert not list(tmp_path.glob("state/*/client-*"))
