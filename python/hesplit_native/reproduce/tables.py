"""Which rows a table has, what each runs, and what the paper printed for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hesplit_native.choices import Table as Name
from hesplit_native.reproduce.published import HESPLIT, HESPLIT_PLAIN, SPLIT_WAYS, Published
from hesplit_native.training.config import RunConfig
from hesplit_native.triad import TriadConfig


@dataclass(frozen=True)
class Row:
    """One run. `reference` names the plaintext row with the same recipe, optimiser and batch size; `data` the data set."""

    id: str
    section: str
    title: str
    config: RunConfig | TriadConfig
    data: str
    published: Published | None = None
    reference: str | None = None
    printed: float | None = None  # a figure that the paper gives for a metric other than accuracy


# The tables are written with plain strings; RunConfig and TriadConfig check them.
def _config(**values: Any) -> RunConfig:
    # Batches of 4 with 5 outputs are the papers' setting.
    return RunConfig(**{"batch_size": 4, "accept_leak": True} | values)


def _triad_config(**values: Any) -> TriadConfig:
    return TriadConfig(**values)


_PAPER = "As published: softmax twice; Adam in plaintext, gradient descent at the encrypted server"
_DEFAULT = "Corrected: plain cross-entropy, Adam on both sides"


def rows(name: Name, *, quick: bool, data: tuple[str, ...] = ("mitbih",), seed: int = 0) -> list[Row]:
    """The rows of a table, the longest first within each section, so that the last ones do not wait for one of them."""
    if name == "triad":
        return _triad(quick, seed)
    made = _split_ways(seed) if name == "split-ways" else [row for item in data for row in _hesplit(item, seed)]
    if not quick:
        return made
    short = []
    for row in made:
        assert isinstance(row.config, RunConfig)
        config = RunConfig(**{**vars(row.config), "epochs": 2, "limit_batches": 20})
        if row.config.batch_size in (4, 64):
            short.append(Row(row.id, row.section, row.title, config, "synthetic", row.published, row.reference))
    return short


def _split_ways(seed: int) -> list[Row]:
    found: list[Row] = []
    for recipe, section in (("paper", _PAPER), ("default", _DEFAULT)):
        published = {row.parameter_set: row for row in SPLIT_WAYS if row.parameter_set}
        optimizer = "sgd" if recipe == "paper" else "adam"
        for chosen, row in published.items():
            config = _config(
                protocol="splitways",
                parameter_set=chosen,
                flooding="off",
                recipe=recipe,
                seed=seed,
            )
            found.append(
                Row(f"{recipe}-{chosen}", section, row.network, config, "mitbih", row, f"{recipe}-plain-{optimizer}")
            )
        found.append(_plain("local", "mitbih", 4, seed, recipe, section, "adam", SPLIT_WAYS[0]))
        found.append(_plain("plain", "mitbih", 4, seed, recipe, section, "adam", SPLIT_WAYS[1]))
        if recipe == "paper":
            found.append(_plain("plain", "mitbih", 4, seed, recipe, section, "sgd", None))
    found += _ours("mitbih", seed, ("splitways", "sealed"))
    return found


def _hesplit(data: str, seed: int) -> list[Row]:
    found: list[Row] = []
    plain = {row.dataset: row for row in HESPLIT_PLAIN}[data]
    for recipe, section in (("default", _DEFAULT), ("paper", _PAPER)):
        optimizer = "sgd" if recipe == "paper" else "adam"
        for row in HESPLIT:
            if row.dataset != data or (recipe == "paper" and row.parameter_set == "S2"):
                continue
            config = _config(
                protocol="hesplit", parameter_set=row.parameter_set, batch_size=row.batch_size, flooding="off",
                recipe=recipe, seed=seed,
            )  # fmt: skip
            found.append(
                Row(
                    f"{data}-{recipe}-{row.parameter_set}-{row.batch_size}",
                    f"{_NAMES[data]}. {section}",
                    row.network,
                    config,
                    data,
                    row,
                    f"{data}-{recipe}-plain-{optimizer}-{row.batch_size}",
                )
            )
        where = f"{_NAMES[data]}. {section}"
        for batch_size in (4, 8, 16, 32, 64):
            known = plain if batch_size == 4 and recipe == "paper" else None
            found.append(_plain("plain", data, batch_size, seed, recipe, where, optimizer, None))
            if known is not None:
                found.append(_plain("plain", data, batch_size, seed, recipe, where, "adam", known))
    found += _ours(data, seed, ("hesplit", "sealed"))
    return found


_NAMES = {"mitbih": "MIT-BIH", "ptbxl": "PTB-XL"}


def _plain(
    protocol: str, data: str, batch_size: int, seed: int, recipe: str, section: str, optimizer: str,
    published: Published | None,
) -> Row:  # fmt: skip
    config = _config(
        protocol=protocol,
        batch_size=batch_size,
        recipe=recipe,
        server_optimizer=optimizer,
        seed=seed,
    )
    name = f"{recipe}-{protocol}-{optimizer}"
    if "." in section:  # tables over several data sets and batch sizes
        name = f"{data}-{name}-{batch_size}"
    title = {"local": "local", "plain": "split, plaintext"}[protocol] + f", {optimizer}"
    return Row(name, section, f"{title}, batch {batch_size}", config, data, published)


def _ours(data: str, seed: int, protocols: tuple[str, ...]) -> list[Row]:
    """Our recommended parameters, with released decryptions flooded, and the protocol that releases nothing."""
    section = f"{_NAMES[data]}. Recommended parameters (blocks, 128 bits classical, flooded), corrected recipe"
    found = [
        replace(_plain(name, data, 4, seed, "default", section, "adam", None), id=f"{data}-ours-{name}")
        for name in ("local", "plain")
    ]
    plain = found[1]
    for protocol in protocols:
        floodings = ("step", "run", "off") if protocol == "splitways" else ("step",)
        for flooding in floodings:
            config = _config(protocol=protocol, flooding=flooding, seed=seed)
            title = protocol if protocol == "sealed" else f"{protocol}, flooding: {_FLOODING[flooding]}"
            found.append(Row(f"{data}-ours-{protocol}-{flooding}", section, title, config, data, None, plain.id))
    return found


_FLOODING = {"step": "fresh key per step", "run": "one key per run", "off": "off"}


def pairs(data: str, seeds: int) -> list[Row]:
    """Paired seeds: plain, the recommended flooded sets and `sealed`, the same seed in each pair."""
    found: list[Row] = []
    for seed in range(seeds):
        for row in _ours(data, seed, ("splitways", "hesplit", "sealed")):
            if isinstance(row.config, RunConfig) and row.config.protocol != "local":
                reference = f"{row.reference}-seed{seed}" if row.reference else None
                found.append(Row(f"{row.id}-seed{seed}", "Paired seeds", row.title, row.config, data, None, reference))
    return found


def _triad(quick: bool, seed: int) -> list[Row]:
    found: list[Row] = []
    epochs = 3 if quick else 100
    section = "LDL-C regression, mean deviation in mg/dL (figures 2 and 3)"
    for share, printed in ((1, 9.5), (2, None), (5, None), (10, 13.6)):
        config = _triad_config(task="ldl", epochs=epochs, seed=seed, share=share)
        part = "all data" if share == 1 else f"1/{share} of the data"
        found.append(Row(f"ldl-unsplit-{share}", section, f"unsplit, {part}", config, "ldl", printed=printed))
    for layer, title in _LAYERS.items():
        for participants in (2, 5, 10):
            config = _triad_config(task="ldl", layer=layer, participants=participants, epochs=epochs, seed=seed)
            printed = 9.9 if layer == "pretrained" else None
            found.append(
                Row(
                    f"ldl-{layer}-{participants}", section, f"{title}, {participants} participants", config, "ldl",
                    reference="ldl-unsplit-1", printed=printed,
                )
            )  # fmt: skip
    section = "CIFAR-10, accuracy in percent (figure 5)"
    limit = 1000 if quick else None
    config = _triad_config(task="cifar10", epochs=2 if quick else 10, seed=seed, limit=limit)
    found.append(Row("cifar-unsplit", section, "unsplit", config, "cifar10"))
    for layer, title in _LAYERS.items():
        config = _triad_config(
            task="cifar10",
            layer=layer,
            participants=10,
            epochs=2 if quick else 10,
            seed=seed,
            limit=limit,
        )
        found.append(
            Row(f"cifar-{layer}", section, f"{title}, 10 participants", config, "cifar10", reference="cifar-unsplit")
        )
    return found


_LAYERS = {
    "random-vector": "case 1, random vector",
    "random-vector-relu": "case 2, random vector and ReLU",
    "pretrained": "case 3, pre-trained locally",
}
