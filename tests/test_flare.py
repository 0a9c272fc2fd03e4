"""The recipe for NVIDIA FLARE in its simulator, with processes of its own; a site's rounds are tested in test_flower.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("nvflare", reason="NO FLARE: install the extra `flare`")

from benchmarks.server_process import server_process

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "flare"
SITES = ("site-1", "site-2", "site-3")


@pytest.mark.parametrize("protocol", ["splitways", "sealed"])
def test_three_sites_learn_together(tmp_path, protocol):
    workspace = tmp_path / "flare"
    if " " in str(workspace):
        pytest.skip(f"FLARE cannot work in a folder with spaces in its path: {workspace}")
    tmp_path = tmp_path / "a folder with spaces"  # ours can
    tmp_path.mkdir()
    certs = [sys.executable, "-m", "hesplit_native", "certs", str(tmp_path / "tls"), "--host", "127.0.0.1"]
    clients = [option for site in SITES for option in ("--client", site)]
    subprocess.run([*certs, *clients], check=True, capture_output=True)
    served = (
        "--tls",
        str(tmp_path / "tls"),
        "--checkpoints",
        str(tmp_path / "ck"),
        "--output",
        str(tmp_path / "layers"),
    )
    with server_process(*served) as (address, _, _):
        options = {
            "--rounds": 2, "--epochs": 3, "--protocol": protocol, "--server": address, "--tls": tmp_path / "tls",
            "--state": tmp_path / "state", "--workspace": workspace,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "job.py", *(str(part) for option in options.items() for part in option)],
            cwd=EXAMPLE, capture_output=True, text=True, timeout=600,
            env=os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:] + done.stdout[-5000:]
    losses = {
        (site, int(round_)): float(loss)
        for site, round_, loss in re.findall(r"(site-\d): round (\d), .*'loss': ([\d.]+)", done.stdout + done.stderr)
    }
    assert losses.keys() == {(site, round_) for site in SITES for round_ in (1, 2)}
    for site in SITES:
        assert losses[site, 2] < losses[site, 1] - 0.05
        # All of them try the same average on the same rows.
        assert losses[site, 2] == pytest.approx(losses[SITES[0], 2], abs=2e-3)
    networks = [load_file(tmp_path / "state" / site / "network.safetensors") for site in SITES]
    layers = [load_file(path) for path in sorted((tmp_path / "layers").glob("*.safetensors"))]
    assert len(layers) == len(SITES)
    if protocol == "sealed":
        assert all(layer.keys() == {"sealed"} for layer in layers)  # ciphertexts, of each site's own key
        layers.clear()
    for found in (networks, layers):
        for other in found[1:]:
            assert all(torch.equal(other[name], value) for name, value in found[0].items())
    assert not list((tmp_path / "state").glob("*/client-*"))
