"""`hesplit-native audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hesplit_native.choices import DatasetName, Split
from hesplit_native.cli.options import load_dataset, with_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from hesplit_native.data.dataset import Dataset
    from hesplit_native.privacy.attacks.features import Table
    from hesplit_native.privacy.audit import Finding, Observer, Row, Setting
    from hesplit_native.privacy.layer_audit import LayerRow, LayerSetting
    from hesplit_native.privacy.page import Report


def audit_command(
    dataset: DatasetName = typer.Option("synthetic", help="What to train on."),
    data_dir: Path | None = typer.Option(None, help="The MIT-BIH records (else HESPLIT_MITDB), or PTB-XL."),
    split: Split = typer.Option("unique", help="Division of MIT-BIH; paper leaks between train and test."),
    rows: str | None = typer.Option(
        None, help="Only rows whose title contains one of these words (comma-separated); `list` lists."
    ),
    quick: bool = typer.Option(False, "--quick", help="Fewer steps and fewer rows: under three minutes."),
    steps: int | None = typer.Option(None, min=20, help="Training steps of every row.  [default: 2000, quick 700]"),
    batch_size: int = typer.Option(4, min=1, help="Of the protocols' rows; the papers' is 4."),
    transcript: Path | None = typer.Option(None, help="Attack a recording (--save) instead of training."),
    save: Path | None = typer.Option(None, help="Directory to write every row's recording to."),
    csv: Path | None = typer.Option(None, help="A table for the private features; else a synthetic one."),
    private: str = typer.Option("", help="Its private columns, comma-separated, of two values each."),
    label: str = typer.Option("", help="Its label, of two values."),
    output: Path = typer.Option(Path("audit"), help="Directory for audit.md, audit.html and audit.json."),
) -> None:
    """Attack every protocol with what its server received, show what each defence changes, and what clients learn of weights."""
    import torch
    from rich.console import Console

    from hesplit_native import _core
    from hesplit_native.cli.paths import output_folder
    from hesplit_native.privacy import page

    console = Console()
    torch.set_num_threads(1)
    _core.set_num_threads(1)
    wanted = _settings(batch_size, quick=quick)
    if rows == "list":
        for row in wanted:
            console.print(row.title, highlight=False, markup=False)
        return
    table = _private_table(csv, private, label)
    chosen = wanted if rows is None else with_words(rows, wanted, lambda row: row.title, "has a title")
    for folder in (output, save):
        if folder is not None:
            output_folder(folder)
    data = load_dataset(dataset, data_dir, split)
    count = steps or (700 if quick else 2000)
    report = page.Report(
        "What the server can learn",
        f"{data.name} ({data.split}), {len(data.train_y)} rows to train on, {count} steps of every row, seed 0, "
        f"{torch.get_num_threads()} thread, kernels {_core.kernels()}.",
    )
    try:
        _run(
            console, report, chosen, data, table, count=count, quick=quick, whole=rows is None, transcript=transcript, save=save,
        )  # fmt: skip
    except BaseException:  # what was found in minutes is not lost
        done = len(report.rows) + len(report.layers)
        if done:
            report.notes.append(f"This audit ended before its time, after {done} of {len(chosen)} rows.")
            _write(console, report, output)
        raise
    _print(console, report)
    _write(console, report, output)


def _write(console: Console, report: Report, output: Path) -> None:
    from hesplit_native.privacy import page

    written = page.write(report, output)
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False)


def _settings(batch_size: int, *, quick: bool) -> list[Setting | LayerSetting]:
    """The rows of the audit; `quick`: of those with noise on activations, the weakest and the strongest, and the fastest lattices."""
    from hesplit_native.privacy import audit, layer_audit

    rows, layers = [*audit.settings(batch_size), *audit.defended(batch_size)], layer_audit.settings()
    if quick:
        rows = [
            row for row in rows if not row.title.startswith("plain, ") or "eps=3" in row.title or "eps=10" in row.title
        ]
        layers = [layer for layer in layers if layer.in_features * layer.out_features <= 20 or layer.in_features > 200]
    return [*rows, *layers]


def _private_table(csv: Path | None, private: str, label: str) -> Table:
    """The table whose private features are attacked."""
    from hesplit_native.errors import ParameterError
    from hesplit_native.privacy.attacks import features

    if csv is None:
        return features.synthetic_table()
    if not private or not label:
        raise ParameterError("a table needs --private and --label, which of its columns are what")
    return features.load_table(csv, private=[name.strip() for name in private.split(",")], label=label)


def _run(
    console: Console, report: Report, rows: list[Setting | LayerSetting], data: Dataset, table: Table, *, count: int, quick: bool,
    whole: bool, transcript: Path | None, save: Path | None,
) -> None:  # fmt: skip
    from hesplit_native.privacy import audit, layer_audit
    from hesplit_native.privacy.transcript import Recording
    from hesplit_native.training.config import RunConfig
    from hesplit_native.training.progress import table_bar

    if transcript is not None:
        recording = Recording.load(transcript)
        terms: dict[str, Any] = {
            "protocol": recording.transcript.protocol,
            "batch_size": recording.transcript.batch_size,
        }
        config = RunConfig(**terms, flooding="off", accept_leak=True)
        recorded = audit.Setting(f"{transcript.name}: {config.protocol}", config)
        report.rows.append(audit.audit(recorded, data, steps=0, recording=recording))
        return
    layers = [row for row in rows if isinstance(row, layer_audit.LayerSetting)]
    more = (3 if whole else 0) + bool(layers)
    bar = table_bar(console)
    with bar:
        all_rows = bar.add_task("rows", total=len(rows) + more)
        one = bar.add_task("", total=1)

        def on_step(what: str, done: int, total: int) -> None:
            bar.update(one, description=what, completed=done, total=total)

        observer: Observer = on_step
        for setting in rows:
            said = _attack(report, setting, data, count=count, save=save, observer=observer)
            bar.advance(all_rows)
            bar.console.print(said, highlight=False, markup=False)
        if layers:
            report.curve = layer_audit.curve(layers[-1], data, most=2048 if quick else 8192, observer=observer)
            bar.advance(all_rows)
        if whole:
            report.hijacked = audit.hijacked(data, steps=600 if quick else 3000)
            bar.advance(all_rows)
            report.features = audit.private_features(table)
            bar.advance(all_rows)
            report.by_depth, report.by_epsilon = audit.resemblances(
                data, steps=count // 3 if quick else 2 * count, observer=observer, rows=60 if quick else 300
            )
            bar.advance(all_rows)
    if any(row.setting.config.releases and row.setting.config.flooding == "off" for row in report.rows):
        report.notes.append("Rows with flooding off show what unflooded releases give away: do not run them.")
    if any(row.setting.config.releases and row.setting.config.accept_leak for row in report.rows):
        report.notes.append(
            "Leak accepted: rows of splitways and hesplit at n=4 have batches smaller than the 5 outputs."
        )


def _attack(
    report: Report, setting: Setting | LayerSetting, data: Dataset, *, count: int, save: Path | None, observer: Observer
) -> str:
    """One more row of the report, and what to say of it at once."""
    from hesplit_native.privacy import audit, layer_audit
    from hesplit_native.privacy.transcript import record

    if isinstance(setting, layer_audit.LayerSetting):
        observer(setting.title, 0, 1)
        report.layers.append(layer_audit.audit_layer(setting, data))
        return _layer_line(report.layers[-1])
    kept = None
    if save is not None:
        kept = record(setting.config, data, steps=count, keep=audit.KEY_STEPS)
        kept.save(save / (setting.title.replace(" ", "-").replace(",", "").replace("/", "") + ".safetensors"))
    report.rows.append(audit.audit(setting, data, steps=count, observer=observer, recording=kept))
    return _line(report.rows[-1])


_WIDE = 170  # characters
_MATTERS_MOST = ("activations", "labels", "key")


def _short(finding: Finding | None) -> str:
    """Without what explains the value."""
    if finding is None or finding.value is None:
        return finding.text if finding is not None else ""
    return f"{finding.value:.2f} ({finding.chance:.2f})" if finding.chance is not None else f"{finding.value:.2f}"


def _line(row: Row) -> str:
    """A row as soon as it is there."""
    said = [f"{name} {text}" for name in _MATTERS_MOST if (text := _short(row.findings.get(name)))]
    return f"{row.setting.title}: accuracy {100 * row.accuracy:.1f} %, {', '.join(said)}"


def _layer_line(row: LayerRow) -> str:
    said = [f"{name} {text}" for name, finding in row.findings.items() if (text := _short(finding))]
    return f"{row.setting.title}: {', '.join(said)}"


def _layers_table(rows: list[LayerRow]) -> RichTable:
    from rich.table import Table as RichTable

    from hesplit_native.privacy.page import LAYER_COLUMNS

    table = RichTable(
        title="What a curious client recovers of the server's weights (chance in brackets)", title_justify="left"
    )
    table.add_column("", min_width=16)
    for name in LAYER_COLUMNS:
        table.add_column(f"by {name}", justify="right")
    for row in rows:
        table.add_row(row.setting.title, *(_short(row.findings.get(name)) for name in LAYER_COLUMNS))
    return table


def _print(console: Console, report: Report) -> None:
    from rich.table import Table as RichTable

    from hesplit_native.privacy.page import COLUMNS, cell

    table = RichTable(title="What an honest-but-curious server recovers (chance in brackets)", title_justify="left")
    table.add_column("", min_width=16)
    table.add_column("accuracy", justify="right", no_wrap=True)
    # A narrow terminal has room for what matters most; the report has all.
    shown = list(COLUMNS) if console.width >= _WIDE else list(_MATTERS_MOST)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=name != "key")
    for row in report.rows:
        table.add_row(
            row.setting.title, f"{100 * row.accuracy:.1f} %", *(_short(row.findings.get(name)) for name in shown)
        )
    if report.rows:
        console.print(table)
    if report.layers:
        console.print(_layers_table(report.layers))
    if report.hijacked is not None:
        console.print(f"plain, hijacked by a malicious server: signals {cell(report.hijacked)}", highlight=False)
    for title, finding, accuracy in report.features:
        console.print(f"private features, {title}: {cell(finding)}, task {100 * accuracy:.1f} %", highlight=False)
    for items in (report.by_depth, report.by_epsilon):
        for item in items:
            console.print(
                f"{item.setting.title}: worst channel's distance correlation {item.worst:.2f} (published {item.published:.2f})",
                highlight=False,
            )
