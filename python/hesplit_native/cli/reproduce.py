"""`hesplit-native reproduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hesplit_native.choices import LipidsUnit, Table
from hesplit_native.cli.options import with_words

if TYPE_CHECKING:
    from hesplit_native.reproduce.tables import Row


_TITLES = {
    "split-ways": "Split Ways, table 1",
    "hesplit": "Split Without a Leak, experimental results",
    "triad": "Triad of Split Learning, figures 2, 3 and 5",
}


def reproduce_command(
    table: Table = typer.Argument(..., help="Which paper's table."),
    quick: bool = typer.Option(False, "--quick", help="A few batches of synthetic data: shows that all rows run."),
    rows: str | None = typer.Option(
        None, help="Only rows whose id contains one of these words (comma-separated); `list` lists."
    ),
    seeds: int = typer.Option(0, min=0, help="Instead: so many paired seeds of the recommended sets."),
    seed: int = typer.Option(0, min=0, help="The seed of the table's rows."),
    mitdb: Path | None = typer.Option(None, envvar="HESPLIT_MITDB", help="The MIT-BIH records."),
    ptbxl: Path | None = typer.Option(
        None, envvar="HESPLIT_PTBXL", help="PTB-XL folder or .npz; without it those rows are left out."
    ),
    lipids: Path | None = typer.Option(
        None, envvar="HESPLIT_LIPIDS", help="A table of lipids; else a synthetic cohort."
    ),
    lipids_columns: str = typer.Option(
        "sex=Gender,age=AGE,tc=Chol,hdl=HDL,tg=TG,bmi=BMI,ldl=LDL",
        help="Which of that table's columns are what; all but ldl become features.",
    ),
    lipids_unit: LipidsUnit = typer.Option("mmol/L", help="Of that table's lipids."),
    cifar10: Path | None = typer.Option(
        None, envvar="HESPLIT_CIFAR10", help="CIFAR-10 folder or .npz; else synthetic images."
    ),
    jobs: int = typer.Option(os.cpu_count() or 1, min=1, help="Rows side by side, one thread each."),
    output: Path | None = typer.Option(None, help="Directory for results, tables and checkpoints."),
) -> None:
    """Regenerate a published table with our figures beside it. Interrupted, it goes on where it stopped."""
    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.reproduce import page, runner, tables

    console = Console()
    data = ("mitbih", *(("ptbxl",) if ptbxl else ()))
    if seeds:
        wanted = [row for item in (data if table == "hesplit" else ("mitbih",)) for row in tables.pairs(item, seeds)]
    else:
        wanted = tables.rows(table, quick=quick, data=data, seed=seed)
    if rows == "list":
        for row in wanted:
            console.print(f"{row.id:40} {row.section}: {row.title}", highlight=False, markup=False)
        return
    chosen = wanted
    if rows is not None:
        chosen = with_words(rows, wanted, lambda row: row.id, f"of {table} has an id")
    folder = output or Path("reproduce") / (table + ("-quick" if quick else "") + ("-seeds" if seeds else ""))
    output_folder(folder)
    sources = {"mitbih": mitdb, "ptbxl": ptbxl, "ldl": lipids, "cifar10": cifar10}
    texts = {key: str(path) if path else None for key, path in sources.items()}
    texts |= {"ldl-columns": lipids_columns, "ldl-unit": lipids_unit}
    failed = _run(console, chosen, folder, texts, jobs)
    title = _TITLES[table] + (": paired seeds of our recommended sets" if seeds else "")
    found = runner.results(wanted, folder)
    written = page.write(folder, table, title, wanted, found, quick=quick)
    console.print(f"{len(found)} of {len(wanted)} rows. Written: {', '.join(map(str, written))}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _run(console: object, rows: list[Row], folder: Path, sources: dict[str, str | None], jobs: int) -> int:
    """Run what is missing, with a bar for the table and one for each row at work."""
    from rich.console import Console

    from hesplit_native.reproduce import runner
    from hesplit_native.training.progress import table_bar

    assert isinstance(console, Console)
    failed = 0
    bar = table_bar(console)
    tasks = {}
    with bar:
        already = len(runner.results(rows, folder))
        table = bar.add_task(f"{len(rows)} rows", total=len(rows), completed=already)

        def on_progress(row: Row, done: int, total: int) -> None:
            if row.id not in tasks:
                tasks[row.id] = bar.add_task(row.title, total=total)
            bar.update(tasks[row.id], completed=done)

        def on_done(row: Row, error: BaseException | None) -> None:
            nonlocal failed
            bar.advance(table)
            if row.id in tasks:
                bar.remove_task(tasks.pop(row.id))
            if error is not None:
                failed += 1
                bar.console.print(f"{row.id} failed: {error}", style="red", markup=False, highlight=False)
            else:
                bar.console.print(f"{row.id} done", highlight=False, markup=False)

        runner.run(rows, folder, sources, jobs=jobs, on_progress=on_progress, on_done=on_done)
    return failed
