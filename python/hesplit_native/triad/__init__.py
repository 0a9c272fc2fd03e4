"""Triad of Split Learning (Lee, Lee, Jun, Kim, Yoo): participants send sanitised data once, the server trains the rest.

Three layers sanitise: a shared random vector, the same with ReLU, and a layer that each participant pre-trains on its own data. The
tasks are the paper's: LDL cholesterol from a lipid panel, and CIFAR-10.
"""

from __future__ import annotations

from hesplit_native.triad.cifar10 import Images, load_cifar10, synthetic_images
from hesplit_native.triad.layers import PretrainedLocal, RandomVector, RandomVectorReLU, shared_vector
from hesplit_native.triad.lipids import Cohort, load_csv, synthetic_cohort
from hesplit_native.triad.service import TriadServer
from hesplit_native.triad.training import TriadConfig, TriadEpoch, TriadObserver, TriadResult, run

__all__ = [
    "Cohort",
    "Images",
    "PretrainedLocal",
    "RandomVector",
    "RandomVectorReLU",
    "TriadConfig",
    "TriadEpoch",
    "TriadObserver",
    "TriadResult",
    "TriadServer",
    "load_cifar10",
    "load_csv",
    "run",
    "shared_vector",
    "synthetic_cohort",
    "synthetic_images",
]
