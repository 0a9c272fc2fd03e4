"""Every attack on every protocol's own transcript, and what defences change: the numbers behind `hesplit-native audit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from hesplit_native.data.dataset import Dataset
from hesplit_native.privacy import metrics
from hesplit_native.privacy.attacks import activations, features, forged, hijack, inversion, keys, labels, traffic
from hesplit_native.privacy.frozen_transcript import record_frozen
from hesplit_native.privacy.transcript import Recording, record
from hesplit_native.training.client import Client
from hesplit_native.training.config import Defences, RunConfig
from hesplit_native.training.defences import Defender
from hesplit_native.training.models import Architecture

#: Called with what is being done, steps done and steps in all.
Observer = Callable[[str, int, int], None]

#: Worst channel's distance correlation as Abuadbba et al. print it: by number of convolutions, and by epsilon.
PUBLISHED_BY_CONVOLUTIONS = {2: 0.89, 3: 0.86, 4: 0.81, 5: 0.78, 6: 0.82, 7: 0.75, 8: 0.69}
PUBLISHED_BY_EPSILON: dict[float | None, float] = {None: 0.89, 10: 0.66, 7: 0.58, 5: 0.49, 3: 0.40, 1: 0.33}

KEY_STEPS = 1200  # enough for a key from unflooded gradients


@dataclass(frozen=True)
class Setting:
    """A row of the audit."""

    title: str
    config: RunConfig
    frozen: bool = False  # the layer is one that the server holds and nobody trains


@dataclass(frozen=True)
class Finding:
    """A cell: how much an attack got, and what it would have got by guessing; `text` where that says more."""

    value: float | None
    chance: float | None = None
    text: str = ""


@dataclass
class Row:
    """All findings of one setting, with examples for pictures: true signals, rebuilt ones, and all channels of one activation."""

    setting: Setting
    accuracy: float
    findings: dict[str, Finding]
    epsilon: float | None = None
    examples: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


def settings(batch_size: int = 4) -> list[Setting]:
    """The protocols with and without flooding at the papers' batch size, and one batch that is not solvable."""
    rows = []
    for protocol, flooding, size, title in (
        ("vanilla", "off", batch_size, "vanilla"),
        ("plain", "off", batch_size, "plain"),
        ("splitways", "off", batch_size, f"splitways, flooding off, n={batch_size}"),
        ("splitways", "step", batch_size, f"splitways, flooded, n={batch_size}"),
        ("splitways", "step", 8, "splitways, flooded, n=8"),
        ("hesplit", "off", batch_size, f"hesplit, flooding off, n={batch_size}"),
        ("hesplit", "step", batch_size, f"hesplit, flooded, n={batch_size}"),
        ("sealed", "step", batch_size, "sealed"),
    ):
        values: dict[str, Any] = {"protocol": protocol, "flooding": flooding, "batch_size": size, "accept_leak": True}
        rows.append(Setting(title, RunConfig(**values)))
    return [
        *rows,
        Setting("frozen layer, forward and backward", RunConfig("local", batch_size=batch_size), frozen=True),
    ]


def defended(batch_size: int = 4) -> list[Setting]:
    """`plain` with each defence: what they cost and what they hide."""
    base = RunConfig(protocol="plain", batch_size=batch_size)
    rows = [
        Setting(
            f"plain, activations eps={epsilon} a value",
            replace(base, defences=Defences(activation_epsilon=float(epsilon))),
        )
        for epsilon in (10, 7, 5, 3, 1)
    ]
    rows += [
        Setting(f"plain, dJ/dy eps={epsilon}", replace(base, defences=Defences(gradient_epsilon=float(epsilon))))
        for epsilon in (100, 10)
    ]
    rows += [
        Setting(f"plain, labels eps={epsilon}", replace(base, defences=Defences(label_epsilon=float(epsilon))))
        for epsilon in (3, 1)
    ]
    wide = replace(base, batch_size=32, defences=Defences(decorrelation=0.2))
    return [*rows, Setting("plain, decorrelated (weight 0.2, n=32)", wide)]


def audit(
    setting: Setting,
    dataset: Dataset,
    *,
    steps: int,
    keep: int = 256,
    observer: Observer | None = None,
    recording: Recording | None = None,
) -> Row:
    """Train, record the server's transcript, and run every attack on its last steps; or on a `recording`."""
    releases = setting.config.releases
    if recording is None:
        recording = (record_frozen if setting.frozen else record)(
            setting.config,
            dataset,
            steps=steps,
            keep=KEY_STEPS if releases else keep,
            observer=_observer_of(observer, "training"),
        )
    findings, examples = _of_data(recording, setting, dataset, keep)
    findings |= _of_keys(recording, setting, dataset)
    seen = traffic.observe(recording.transcript, recording.truth.labels)
    findings["traffic"] = Finding(
        seen.label_information, 0.0, f"{_sizes(seen.sizes_up)} up, {_sizes(seen.sizes_down)} down a step"
    )
    return Row(setting, recording.accuracy, findings, recording.epsilon, examples)


def _observer_of(observer: Observer | None, what: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: observer(what, done, total)) if observer is not None else None


def _channels(client: Client) -> int:
    """Of what the last convolution gives."""
    return cast(Architecture, client.task.network).channels


def _of_data(
    recording: Recording, setting: Setting, dataset: Dataset, keep: int
) -> tuple[dict[str, Finding], dict[str, npt.NDArray[Any]]]:
    """Activations, labels and signals of the last `keep` steps: findings, and examples for pictures."""
    truth, last = recording.truth, slice(-keep, None)
    estimate = np.concatenate(activations.recover(recording.transcript)[last])
    findings = {"activations": _correlation(estimate, np.concatenate(truth.activations[last]))}
    findings |= _of_labels(recording, last)
    signals = np.concatenate(truth.inputs[last])[:, 0]
    channels = _channels(recording.client) if recording.client is not None else 8
    maps = inversion.stretched_channels(estimate, channels, signals.shape[1])
    findings["closest channel"] = Finding(
        _median(inversion.closest_channel_correlation(maps, signals)),
        _median(inversion.closest_channel_correlation(maps, _of_others(signals))),
    )
    examples: dict[str, npt.NDArray[Any]] = {"signals": signals[:4], "channels": maps[:4]}
    if recording.body is not None:
        invert = inversion.learn_inverse(_defended_body(recording, setting.config), dataset.test_x[:4000])
        rebuilt = invert(estimate)[:, 0]
        findings["signals"] = _correlation(rebuilt, signals)
        examples["rebuilt"] = rebuilt[:4]
    return findings, examples


def _of_labels(recording: Recording, last: slice) -> dict[str, Finding]:
    transcript = recording.transcript
    known = np.concatenate(recording.truth.labels[last])
    most_frequent = float(np.bincount(known).max() / len(known))
    guesses = np.concatenate(labels.infer(transcript)[last])
    findings = {"labels": Finding(labels.accuracy(guesses, known), most_frequent)}
    gradients = [gradient for step in transcript.steps[last] if (gradient := transcript.gradient(step)) is not None]
    if len(gradients) == len(transcript.steps[last]):
        rarest = known == np.bincount(known, minlength=transcript.classes).argmin()
        findings["labels by size"] = Finding(labels.by_norm(np.concatenate(gradients), rarest), 0.5)
        clusters = np.concatenate(labels.clusters(transcript)[last])
        findings["labels by direction"] = Finding(labels.cluster_accuracy(clusters, known), most_frequent)
    return findings


def _defended_body(recording: Recording, config: RunConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """The client's convolutions with the noise that it adds, from signals to activations."""
    assert recording.body is not None
    body = recording.body.eval()
    defender = Defender(config.defences, recording.transcript.features)
    return lambda x: defender.activations(body(x))


def _of_others(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same rows in another order: what an estimate is compared with for its chance level."""
    return values[np.random.default_rng(0).permutation(len(values))]


def _correlation(estimate: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Finding:
    """The median correlation of rows with the truth, and by chance."""
    return Finding(
        _median(metrics.correlations(estimate, truth)), _median(metrics.correlations(estimate, _of_others(truth)))
    )


def _of_keys(recording: Recording, setting: Setting, dataset: Dataset) -> dict[str, Finding]:
    """The client's key, from releases and by forged replies."""
    protocol = setting.config.protocol
    if protocol not in ("splitways", "hesplit"):
        nothing = Finding(None, text="no key" if protocol in ("vanilla", "plain") else "nothing is released")
        return {
            "key": nothing,
            "forged replies": Finding(None, text="no key" if nothing.text == "no key" else "not tried"),
        }
    found = (
        keys.from_masked_weights(recording.transcript)
        if protocol == "hesplit"
        else keys.from_gradients_of_logits(recording.transcript)
    )
    findings = {"key": Finding(found.share, 0.0, f"{found.equations} equations")}
    if protocol == "splitways":
        extraction = forged.extract_key(setting.config, dataset)
        text = f"the key after {extraction.steps} steps" if extraction.opens else "never a whole key"
        findings["forged replies"] = Finding(float(extraction.opens), 0.0, text)
    else:
        findings["forged replies"] = Finding(None, text="as splitways")
    return findings


@dataclass(frozen=True)
class Likeness:
    """How activation channels resemble signals: distance correlation and time warping, mean and worst channel."""

    setting: Setting
    accuracy: float
    mean: float
    worst: float
    warping_mean: float
    warping_worst: float
    published: float | None


def resemblances(
    dataset: Dataset, *, steps: int, batch_size: int = 4, observer: Observer | None = None, rows: int = 200
) -> tuple[list[Likeness], list[Likeness]]:
    """Abuadbba et al.'s two tables: by number of convolutions, and by epsilon of noise on activations."""

    def measured(title: str, config: RunConfig, published: float | None) -> Likeness:
        recording = record(config, dataset, steps=steps, keep=1, observer=_observer_of(observer, title))
        return _likeness(Setting(title, config), recording, dataset.test_x[:rows], published)

    base = RunConfig(protocol="plain", batch_size=batch_size)
    by_depth = [
        measured(f"{count} convolutions", replace(base, convolutions=count), published)
        for count, published in PUBLISHED_BY_CONVOLUTIONS.items()
    ]
    by_epsilon = [
        measured(
            "no noise" if epsilon is None else f"eps={epsilon:g}",
            replace(base, defences=Defences(activation_epsilon=epsilon)),
            published,
        )
        for epsilon, published in PUBLISHED_BY_EPSILON.items()
    ]
    return by_depth, by_epsilon


def _likeness(setting: Setting, recording: Recording, x: npt.NDArray[np.float32], published: float | None) -> Likeness:
    assert recording.client is not None
    with torch.no_grad():
        maps = _defended_body(recording, setting.config)(torch.from_numpy(x)).numpy()
    found = metrics.resemblance(x, maps, _channels(recording.client), rows=len(x))
    return Likeness(
        setting,
        recording.accuracy,
        mean=float(found.distance_correlation.mean()),
        worst=float(found.distance_correlation[found.worst]),
        warping_mean=float(found.dynamic_time_warping.mean()),
        warping_worst=float(found.dynamic_time_warping.min()),
        published=published,
    )


def hijacked(dataset: Dataset, *, steps: int) -> Finding:
    """Signals that a malicious server decodes from a `plain` client that it has trained for itself."""
    config = RunConfig(protocol="plain", batch_size=32)
    found = hijack.hijack(config, dataset, dataset.test_x[:4000], steps=steps)
    finding = _correlation(found.decoded[:, 0], found.inputs[:, 0])
    return replace(finding, text=f"after {steps} steps of batch 32")


def private_features(table: features.Table) -> list[tuple[str, Finding, float]]:
    """Private features from cut-layer gradients, with and without noise: what is sent, how much is right, the task's accuracy."""
    found = []
    for title, epsilon in (("dJ/dz as it is", None), ("dJ/dz, eps=1000", 1000.0), ("dJ/dz, eps=100", 100.0)):
        defender = Defender(Defences(gradient_epsilon=epsilon, gradient_clip=0.5), 1)
        observed, truth, accuracy = features.train(table, protect=defender.gradient if epsilon else None)
        guess = features.reconstruct(observed, table.private.shape[1])
        found.append((title, Finding(features.accuracy(guess, truth), features.chance(table)), accuracy))
    return found


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.median(values))


def _sizes(sizes: tuple[int, ...]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low / 1e3:.1f}" + (f" to {high / 1e3:.1f}" if high != low else "") + " kB"
