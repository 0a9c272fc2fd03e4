"""Network and data: nothing here knows of federations or encryption."""

import torch
from torch import nn

from hesplit_native.data import synthetic_ecg
from hesplit_native.training.division import divide

OUTPUTS, SEED = 5, 0


class Network(nn.Module):
    """All that comes before the server's layer. FLARE's server makes one, too: the weights that all sites begin with.

    There it is made `with_layer` for `sealed`, where sites hold the layer and what they send has it, under this name.
    """

    def __init__(self, with_layer=False):
        super().__init__()
        torch.manual_seed(SEED)
        self.with_layer = with_layer
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3), nn.LeakyReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 8, 5, padding=2), nn.LeakyReLU(), nn.MaxPool1d(2),
        )  # fmt: skip
        if with_layer:
            self.server_layer = nn.Linear(8 * 32, OUTPUTS)

    def forward(self, x):
        return self.body(x)


def make_data(index, sites):
    """Heartbeats of this site, and those on which all sites try the average."""
    found = synthetic_ecg(train=1200, test=300, seed=SEED)
    rows = divide(found, sites, "even", SEED)[index]
    return (found.train_x[rows], found.train_y[rows]), (found.test_x, found.test_y)
