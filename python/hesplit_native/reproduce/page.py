"""A table as Markdown, and as one HTML page with curves."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from hesplit_native import web_page
from hesplit_native.files import SHARED, write_atomically
from hesplit_native.plots import pyplot
from hesplit_native.reproduce.tables import Row
from hesplit_native.training import report
from hesplit_native.triad import TriadConfig

Results = dict[str, dict[str, Any]]

_HEAD = ["row", "published", "ours", "same recipe, plaintext", "difference", "s per epoch: published", "ours", "ratio",
         "sent per epoch: published", "ours", "ratio"]  # fmt: skip


def _cells(row: Row, results: Results, quick: bool) -> list[str]:
    values = results.get(row.id)
    published = row.published
    printed = published.accuracy if published else row.printed
    if values is None:
        return [row.title, f"{printed:.2f}" if printed else "", "not run", *[""] * 8]
    reference = results.get(row.reference or "")
    seconds, sent = values["seconds_per_epoch"], values["bytes_per_epoch"]
    cells = [row.title, f"{printed:.2f}" if printed else "", f"{values['metric']:.2f}"]
    cells += [f"{reference['metric']:.2f}", f"{values['metric'] - reference['metric']:+.2f}"] if reference else ["", ""]
    cells += [f"{published.seconds:,.2f}" if published else "", f"{seconds:,.2f}"]
    cells += [f"{published.seconds / seconds:,.1f}×" if published and not quick else ""]
    cells += [published.communication if published else "", report.size(sent) if sent else "0"]
    cells += [
        f"{published.communication_bytes / sent:,.0f}×"
        if published and published.communication_bytes and sent and not quick
        else ""
    ]
    return cells


def _means(members: list[Row], results: Results) -> list[list[str]]:
    """Rows of one title under several seeds: how many, their mean, and the mean of their differences to the plaintext ones."""
    lines = []
    for title in dict.fromkeys(row.title for row in members):
        same = [row for row in members if row.title == title and row.id in results]
        if len(same) < 2:
            continue
        metrics = [results[row.id]["metric"] for row in same]
        pairs = [
            results[row.id]["metric"] - results[row.reference]["metric"] for row in same if row.reference in results
        ]
        difference = f"{sum(pairs) / len(pairs):+.2f} ({min(pairs):+.2f} to {max(pairs):+.2f})" if pairs else ""
        lines.append([title, str(len(same)), f"{sum(metrics) / len(metrics):.2f}", difference])
    return lines


_MEANS_HEAD = ["row", "seeds", "mean", "mean difference to plaintext"]


def _sections(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.section, []).append(row)
    return found


def _summary(rows: list[Row], results: Results, quick: bool) -> list[str]:
    done = [results[row.id] for row in rows if row.id in results]
    lines = []
    if quick:
        lines.append(
            "**Quick: a few batches of synthetic data. It shows that every row runs; the figures mean nothing.**"
        )
    if rows and isinstance(rows[0].config, TriadConfig):
        lines.append(
            "On the validation set after the last epoch. Bytes are those of the sanitised training rows, sent once; seconds are the "
            "server's. "
            "The paper's cohort (400,000 patients of one hospital) is not public; figures are comparable only in kind."
        )
        return lines + _provenance(done)
    lines.append(
        "Accuracy in percent on the test set, averaged over the last three epochs. Bytes are counted at the channel, both directions, "
        "training steps only; seconds are those of training steps, one thread, rows side by side. "
        "Published communication is printed in Tb and Gb; the ratio takes these as 10¹² and 10⁹ bytes."
    )
    unflooded = [row.title for row in rows if results.get(row.id, {}).get("flooding") == "off"]
    if unflooded:
        lines.append(
            "**Noise flooding: off** in the rows with published parameter sets, which have no room for it: over many steps "
            "what they release lets the server recover the key."
        )
    below = [
        row.title for row in rows if ((results.get(row.id, {}).get("parameters") or {}).get("security")) == "paper"
    ]
    if below:
        lines.append(
            f"Below 128 bits (classical) by the 2024 guideline, as published: {', '.join(sorted(set(below)))}."
        )
    return lines + _provenance(done)


def _provenance(done: list[dict[str, Any]]) -> list[str]:
    """Machine, versions, seeds and data."""
    lines = []
    for values in done[:1]:
        machine, versions = values["machine"], values["versions"]
        features = ", ".join(name for name, there in machine["cpu_features"].items() if there)
        lines.append(
            f"{machine['platform']}, {machine['cpus']} CPUs ({features}); "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
        )
    seeds = sorted({str(values["config"].get("seed")) for values in done})
    data = sorted({values["data"] for values in done})
    lines.append(f"Seeds: {', '.join(seeds)}. Data: {'; '.join(data)}.")
    return lines


def markdown(title: str, rows: list[Row], results: Results, *, quick: bool) -> str:
    """The whole table as Markdown."""
    lines = [f"# {title}", ""]
    lines += [line + "\n" for line in _summary(rows, results, quick)]
    for section, members in _sections(rows).items():
        lines += [f"## {section}", "", "| " + " | ".join(_HEAD) + " |", "|---" + "|---:" * (len(_HEAD) - 1) + "|"]
        lines += ["| " + " | ".join(_cells(row, results, quick)) + " |" for row in members]
        lines.append("")
        means = _means(members, results)
        if means:
            lines += ["| " + " | ".join(_MEANS_HEAD) + " |", "|---|---:|---:|---:|"]
            lines += ["| " + " | ".join(cells) + " |" for cells in means] + [""]
    return "\n".join(lines)


def _curves(section: str, members: list[Row], results: Results) -> str:
    """A picture of accuracy by epoch; empty when there is nothing to draw."""
    plt = pyplot()
    from matplotlib.ticker import MaxNLocator

    drawn = [(row, results[row.id]["curve"]) for row in members if row.id in results]
    if not drawn:
        return ""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for row, curve in drawn:
        axes.plot(range(1, len(curve) + 1), curve, marker=".", label=row.title)
    axes.set(xlabel="epoch", ylabel="test set")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return web_page.picture(figure, f"{section}: by epoch")


def page(title: str, rows: list[Row], results: Results, *, quick: bool) -> str:
    """The whole table as one HTML page that needs no other file."""
    parts = []
    for line in _summary(rows, results, quick):
        pieces = html.escape(line).split("**")
        parts.append("<p>" + "".join(f"<strong>{p}</strong>" if i % 2 else p for i, p in enumerate(pieces)) + "</p>")
    for section, members in _sections(rows).items():
        parts.append(f"<h2>{html.escape(section)}</h2>")
        parts.append(web_page.table(_HEAD, (_cells(row, results, quick) for row in members)))
        means = _means(members, results)
        if means:
            parts.append(web_page.table(_MEANS_HEAD, means))
        parts.append(_curves(section, members, results))
    return web_page.page(title, parts)


def write(folder: Path, name: str, title: str, rows: list[Row], results: Results, *, quick: bool) -> list[Path]:
    """Both files; returns their paths."""
    paths = [folder / f"{name}.md", folder / f"{name}.html"]
    for path, text in zip(paths, (markdown, page), strict=True):
        write_atomically(path, text(title, rows, results, quick=quick).encode(), mode=SHARED)
    return paths
