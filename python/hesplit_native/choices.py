"""The words that a run's options may be: configurations, functions and the command line share them. Importing this loads nothing."""

from __future__ import annotations

from typing import Literal

DatasetName = Literal["synthetic", "mitbih", "synthetic12", "ptbxl"]
#: Of a recording of PTB-XL: the class of its first diagnostic statement, or all its classes.
Labels = Literal["single", "multi"]
#: Divisions of MIT-BIH.
Split = Literal["paper", "unique", "patients"]

#: Who computes what, and what is encrypted.
ProtocolName = Literal["local", "vanilla", "plain", "splitways", "hesplit", "sealed", "vertical"]
Model = Literal["m1", "m2", "base"]
Recipe = Literal["default", "paper"]
ServerOptimizer = Literal["adam", "sgd", "momentum"]

#: How ciphertexts are filled.
Packing = Literal["blocks", "slots", "merged"]
#: Limits of the modulus: 128 bits against classical or against quantum computers; or none, for published sets.
Security = Literal["standard", "quantum", "paper"]
#: Those to choose parameters for.
Attacker = Literal["standard", "quantum"]
#: Under which keys decryptions are released with noise: a fresh one per step, one per run; off: without noise.
Flooding = Literal["step", "run", "off"]
#: What a server of the encrypted layer is asked for (`hesplit_native.layer.costs`).
Served = Literal[
    "public_material", "forward", "training", "weight_gradient", "opened_gradient",
    "sealed_weight", "sealed_forward", "sealed_gradient", "sealed_update",
]  # fmt: skip
#: Of a frozen layer: ``x W^T + b``, or ``G W``.
Direction = Literal["forward", "backward"]
#: What happens to activations beyond the agreed ranges.
Overflow = Literal["clip", "raise"]
#: The same for a layer of torch: the first time it says so.
LayerOverflow = Literal["warn", "clip", "raise"]
#: Noise on activations.
Mechanism = Literal["gaussian", "laplace", "values"]

#: How several participants train together.
Mode = Literal["turns", "parallel"]
#: How training data is divided among participants.
Division = Literal["even", "patients"]

#: The papers' tables.
Table = Literal["split-ways", "hesplit", "triad"]
LipidsUnit = Literal["mg/dL", "mmol/L"]
#: Of layers whose weights do not change: errors like those of float32 sums, or between bfloat16's and float32's at half the work.
Precision = Literal["float32", "bfloat16"]
