"""The audit's report: a table for people who read Markdown, and a page with pictures that needs no other file."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hesplit_native import web_page
from hesplit_native.files import SHARED, write_atomically
from hesplit_native.plots import pyplot
from hesplit_native.privacy.audit import Finding, Likeness, Row
from hesplit_native.privacy.layer_audit import FOUND, Curve, LayerRow

COLUMNS = {
    "activations": "correlation of recovered activations",
    "labels": "labels right, by sign",
    "labels by direction": "by direction",
    "labels by size": "rarest label by size, area under ROC",
    "signals": "correlation of rebuilt signals",
    "closest channel": "correlation of the closest channel",
    "key": "requests opened with the key found",
    "forged replies": "malicious: forged replies",
    "traffic": "labels told by sizes and times",
}

LAYER_COLUMNS = {
    "reply": "W from a reply",
    "head": "larger weights told by a reply's head",
    "answers": "W from answers",
    "budget": "W from as many answers as the budget allows",
}

EXPLANATION = (
    "Each attack has what the server of that row received, sent and held, and nothing else; the chance level is in brackets: what the "
    "same estimate scores against somebody else's data. Correlations are medians over samples, with the mean sample taken out. "
    "Signals are rebuilt by a network that a colluding participant trained on other signals. `n` is the batch size."
)


@dataclass
class Report:
    """All that an audit found."""

    title: str
    provenance: str
    rows: list[Row] = field(default_factory=list)
    hijacked: Finding | None = None
    features: list[tuple[str, Finding, float]] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    curve: Curve | None = None
    by_depth: list[Likeness] = field(default_factory=list)
    by_epsilon: list[Likeness] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Every number."""

        def plain(row: Row) -> dict[str, Any]:
            found = {name: asdict(finding) for name, finding in row.findings.items()}
            return {
                "title": row.setting.title, "config": asdict(row.setting.config), "accuracy": row.accuracy,
                "epsilon": row.epsilon, "findings": found,
            }  # fmt: skip

        def layer(row: LayerRow) -> dict[str, Any]:
            found = {name: asdict(finding) for name, finding in row.findings.items()}
            return asdict(row.setting) | {"findings": found}

        def likeness(item: Likeness) -> dict[str, Any]:
            return {name: value for name, value in asdict(item).items() if name != "setting"} | {
                "title": item.setting.title
            }

        return json.dumps(
            {
                "rows": [plain(row) for row in self.rows],
                "hijacked": asdict(self.hijacked) if self.hijacked else None,
                "features": [[title, asdict(finding), accuracy] for title, finding, accuracy in self.features],
                "layers": [layer(row) for row in self.layers],
                "curve": asdict(self.curve) if self.curve else None,
                "by_depth": [likeness(item) for item in self.by_depth],
                "by_epsilon": [likeness(item) for item in self.by_epsilon],
                "provenance": self.provenance,
                "notes": self.notes,
            },
            indent=2,
        )


def cell(finding: Finding | None) -> str:
    """A finding for a table."""
    if finding is None:
        return ""
    if finding.value is None:
        return finding.text or "–"
    chance = f" ({finding.chance:.2f})" if finding.chance is not None else ""
    return f"{finding.value:.3f}{chance}" + (f", {finding.text}" if finding.text else "")


@dataclass(frozen=True)
class _Table:
    heading: str
    explanation: str
    head: list[str]
    rows: list[list[str]]


def _tables(report: Report) -> list[_Table]:
    """All that have rows."""
    tables = [
        _recovered(report.rows),
        _of_weights(report.layers),
        _decoded(report.hijacked),
        _private_features(report.features),
        _resemblance("number of convolutions", report.by_depth),
        _resemblance("noise on activations", report.by_epsilon),
    ]
    return [table for table in tables if table.rows]


def _recovered(rows: list[Row]) -> _Table:
    lines = [
        [
            row.setting.title,
            _percent(row.accuracy),
            "" if row.epsilon is None else f"{row.epsilon:,.3g}",
            *(cell(row.findings.get(name)) for name in COLUMNS),
        ]
        for row in rows
    ]
    head = ["", "test accuracy", "epsilon of the run", *COLUMNS.values()]
    return _Table("What an honest-but-curious server recovers", EXPLANATION, head, lines)


def _of_weights(rows: list[LayerRow]) -> _Table:
    lines = [[row.setting.title, *(cell(row.findings.get(name)) for name in LAYER_COLUMNS)] for row in rows]
    return _Table(
        "What an honest-but-curious client recovers of the server's weights",
        LAYER,
        ["", *LAYER_COLUMNS.values()],
        lines,
    )


def _decoded(finding: Finding | None) -> _Table:
    return _Table(
        "A malicious server of `plain`: feature-space hijacking",
        "It answers gradients of its own. The encrypted protocols do not show it activations to do so with.",
        ["", "correlation of decoded signals"],
        [["plain", cell(finding)]] if finding is not None else [],
    )


def _private_features(found: list[tuple[str, Finding, float]]) -> _Table:
    lines = [[title, cell(finding), _percent(accuracy)] for title, finding, accuracy in found]
    head = ["", "features right", "task accuracy"]
    return _Table("Private features from cut-layer gradients", _FEATURES, head, lines)


def _resemblance(by: str, items: list[Likeness]) -> _Table:
    head = [
        "", "worst channel, published", "worst channel", "mean channel", "time warping, worst", "time warping, mean",
        "test accuracy",
    ]  # fmt: skip
    lines = [
        [
            item.setting.title,
            "" if item.published is None else f"{item.published:.2f}",
            f"{item.worst:.2f}",
            f"{item.mean:.2f}",
            f"{item.warping_worst:.2f}",
            f"{item.warping_mean:.2f}",
            _percent(item.accuracy),
        ]
        for item in items
    ]
    return _Table(f"Resemblance of activations and signals by {by}", LIKENESS, head, lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_FEATURES = (
    "Qiu et al.: the device holds yes-or-no features and labels; the server sees dJ/dz. Share of features that gradient "
    "matching finds."
)
LAYER = (
    f"Share of the weights that are found to {100 * FOUND:.0f} % of their root mean square, and by chance. A reply: lattice reduction "
    "of its c1, a rounded product of W with numbers that the client drew. A head: a reply's scale says what its logits can reach; "
    "share of pairs of layers of which it tells the larger one, chance is a half. Answers: d + 1 chosen questions of a layer of d "
    "features; the budget is half of d, which gives as many columns of W as there are answers, and nothing of the others."
)
LIKENESS = (
    "Abuadbba et al.: distance correlation of a signal and each channel of its activations (1: the same), and dynamic time warping "
    "of both, standardised (0: the same), means over test signals. Two unrelated series of 32 samples have a distance correlation of "
    "about 0.3. The published column by epsilon is what Laplace noise of scale 2 / epsilon gives: values are clipped to ±1 here."
)


def markdown(report: Report) -> str:
    """All tables."""
    lines = [f"# {report.title}", "", report.provenance, ""]
    lines += [f"**{note}**\n" for note in report.notes]
    for table in _tables(report):
        lines += [f"## {table.heading}", "", table.explanation, ""]
        lines += [f"| {' | '.join(table.head)} |", "|---" * len(table.head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows] + [""]
    return "\n".join(lines)


def page(report: Report) -> str:
    """Tables and pictures."""
    parts = [f"<p>{html.escape(report.provenance)}</p>"]
    parts += [f"<p><strong>{html.escape(note)}</strong></p>" for note in report.notes]
    for table in _tables(report):
        parts.append(f"<h2>{html.escape(table.heading)}</h2><p>{html.escape(table.explanation)}</p>")
        parts.append(web_page.table(table.head, table.rows))
    for caption, figure in (
        ("Signals (grey) and what the server rebuilds of them", _signals(report.rows)),
        ("A signal (top) and the channel of its activations that the server's estimate shows most like it", _channels(report.rows)),
        ("Noise: accuracy against leakage", _trade(report.rows)),
        ("W from answers by least squares: error against the number of answers", _curve(report.curve)),
        ("Resemblance beside what was published", _likeness(report)),
    ):  # fmt: skip
        if figure is not None:
            parts.append(f"<h2>{html.escape(caption)}</h2>{web_page.picture(figure, caption)}")
    return web_page.page(report.title, parts)


def _plot(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, sharex=True
    )
    return figure, axes


def _signals(rows: list[Row]) -> Any:
    shown = [row for row in rows if "rebuilt" in row.examples]
    if not shown:
        return None
    count = len(shown[0].examples["signals"])
    figure, axes = _plot(len(shown), count, 2.6, 1.3)
    for line, row in zip(axes, shown, strict=True):
        for axis, true, rebuilt in zip(line, row.examples["signals"], row.examples["rebuilt"], strict=True):
            axis.plot(true, color="#bbbbbb", linewidth=2.5)
            axis.plot(rebuilt, color="#c2410c", linewidth=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(row.setting.title, fontsize=7, rotation=0, ha="right")
    return figure


def _channels(rows: list[Row]) -> Any:
    from hesplit_native.privacy.attacks.inversion import closest_channel_correlation

    shown = [row for row in rows if "channels" in row.examples]
    if not shown:
        return None
    figure, axes = _plot(2, len(shown), 1.9, 1.3)
    for column, row in enumerate(shown):
        signal, maps = row.examples["signals"][:1], row.examples["channels"][0]
        closest = max(
            range(len(maps)),
            key=lambda channel: float(closest_channel_correlation(maps[None, [channel]], signal)[0]),
        )
        axes[0][column].plot(signal[0], color="#666666")
        axes[1][column].plot(maps[closest], color="#2f6690")
        axes[0][column].set_title(row.setting.title, fontsize=6)
        for axis in axes[:, column]:
            axis.set(xticks=[], yticks=[])
    return figure


def _trade(rows: list[Row]) -> Any:
    """Accuracy and leakage against epsilon, for noise on activations, gradients and labels."""
    kinds = {
        "activation_epsilon": ("noise on activations", "signals"),
        "gradient_epsilon": ("noise on dJ/dy", "labels"),
        "label_epsilon": ("changed labels", "labels"),
    }
    plain = next((row for row in rows if row.setting.title == "plain"), None)
    found = {
        name: sorted(
            ((getattr(row.setting.config.defences, name), row) for row in rows if getattr(row.setting.config.defences, name)),
            key=lambda item: item[0],
        )
        for name in kinds
    }  # fmt: skip
    found = {name: items for name, items in found.items() if items}
    if not found:
        return None
    figure, axes = _plot(1, len(found), 4.2, 3.4)
    for axis, (name, items) in zip(axes[0], found.items(), strict=True):
        title, column = kinds[name]
        epsilons = [epsilon for epsilon, _ in items]
        axis.plot(epsilons, [row.accuracy for _, row in items], marker="o", color="#2f6690", label="test accuracy")
        leaks = [row.findings[column].value if column in row.findings else None for _, row in items]
        axis.plot(epsilons, leaks, marker="o", color="#c2410c", label=f"leakage: {COLUMNS[column]}")
        if plain is not None:
            axis.axhline(plain.accuracy, color="#2f6690", linestyle=":", linewidth=1)
        axis.set(xscale="log", title=title, xlabel="epsilon (dotted: accuracy without noise)", ylim=(-0.05, 1.05))
        axis.legend(frameon=False, fontsize=7)
        axis.grid(alpha=0.25)
    return figure


def _curve(found: Curve | None) -> Any:
    if found is None:
        return None
    figure, ((axis,),) = _plot(1, 1, 6.5, 3.8)
    for index, (deviation, errors) in enumerate(found.errors.items()):
        label = f"noise {deviation:g} on each logit" if deviation else "no noise but the encryption's"
        shade = 0.15 + 0.75 * index / len(found.errors)
        axis.plot(
            found.counts, errors, marker="o", markersize=3, color=pyplot().get_cmap("inferno")(shade), label=label
        )
    axis.axvline(found.budget, color="#2f6690", label=f"budget, {found.budget} answers")
    axis.axvline(found.solving, color="#2f6690", linestyle=":", label=f"W is determined, {found.solving} answers")
    axis.axhline(1, color="#bbbbbb", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="answers", ylabel="relative error of W", title=found.setting.title)
    axis.legend(frameon=False, fontsize=7)
    axis.grid(alpha=0.25)
    return figure


def _likeness(report: Report) -> Any:
    tables = [items for items in (report.by_depth, report.by_epsilon) if items]
    if not tables:
        return None
    figure, axes = _plot(1, len(tables), 5, 3.2)
    for axis, items in zip(axes[0], tables, strict=True):
        names = [item.setting.title for item in items]
        axis.plot(names, [item.worst for item in items], marker="o", color="#c2410c", label="worst channel, ours")
        axis.plot(names, [item.mean for item in items], marker="o", color="#e8a27c", label="mean channel, ours")
        axis.plot(
            names, [item.published for item in items], marker="s", color="#666666", label="worst channel, published"
        )
        axis.set(ylim=(0, 1), ylabel="distance correlation")
        axis.tick_params(axis="x", labelrotation=30, labelsize=7)
        axis.legend(frameon=False, fontsize=7)
        axis.grid(alpha=0.25)
    return figure


def write(report: Report, folder: Path) -> list[Path]:
    """audit.md, audit.html and audit.json; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in (("audit.md", markdown(report)), ("audit.html", page(report)), ("audit.json", report.to_json())):
        path = folder / name
        write_atomically(path, text.encode(), mode=SHARED)
        paths.append(path)
    return paths
