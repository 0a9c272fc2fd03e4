"""Network and data: nothing here knows of federations or encryption."""

import torch
from torch import nn

from hesplit_native.data import load_mitbih, synthetic_ecg
from hesplit_native.training.division import divide

OUTPUTS, SEED = 5, 0


def make_network():
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3), nn.LeakyReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 8, 5, padding=2), nn.LeakyReLU(), nn.MaxPool1d(2),
    )  # fmt: skip


def _heartbeats(context):
    """MIT-BIH where a folder is named, divided by patients; synthetic ones otherwise."""
    folder = context.node_config.get("mitdb") or context.run_config.get("mitdb")
    return load_mitbih(folder, split="patients") if folder else synthetic_ecg(train=1200, test=300, seed=SEED)


def make_data(context):
    """Those of this site, of as many as there are."""
    found = _heartbeats(context)
    division = "even" if found.train_patient is None else "patients"
    rows = divide(found, int(context.run_config["sites"]), division, SEED)[int(context.node_config["partition-id"])]
    return found.train_x[rows], found.train_y[rows]


def make_validation(context):
    """The same for all: patients of no site."""
    found = _heartbeats(context)
    return found.test_x, found.test_y
