"""The command line: `hesplit-native train | serve | predict | reproduce | audit | certs | plan | info`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, NoReturn

import typer
import typer.core

from hesplit_native.cli import audit, certs, info, plan, predict, reproduce, serve, terminal, train


class _Group(typer.core.TyperGroup):
    """Turns the package's own errors, and the system's about files, into one readable line; the rest are bugs with a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        terminal.accept_all_characters()
        try:
            return super().main(*args, **options)
        finally:
            # What is still buffered may find its reader gone or its disk full; at the interpreter's end nobody would say so in a line.
            try:
                _flush_output()
            except OSError as error:
                _give_up(error)

    def make_context(self, *args: Any, **options: Any) -> Any:
        try:
            return super().make_context(*args, **options)  # --version and --help print in here
        except OSError as error:
            _give_up(error)

    def invoke(self, ctx: Any) -> Any:
        from hesplit_native.errors import HESplitError

        try:
            return super().invoke(ctx)
        except HESplitError as error:
            if ctx.params.get("debug"):
                raise
            _stop(str(error))
        except OSError as error:
            _give_up(error, debug=bool(ctx.params.get("debug")))


def _words(error: OSError) -> str:
    """What the system refused, with the path that it refused it for."""
    where = "".join(f"{name}: " for name in (error.filename, error.filename2) if name is not None)
    return f"{where}{error.strerror or error} (hesplit-native --debug COMMAND shows where)"


def _stop(text: str) -> NoReturn:
    from rich.console import Console

    line = terminal.one_line(f"error: {text}")
    Console(stderr=True, soft_wrap=True).print(line, style="red", markup=False, highlight=False)
    raise SystemExit(1)


def _give_up(error: OSError, *, debug: bool = False) -> NoReturn:
    """End with what the system refused; buffered output that it refuses, too, is dropped."""
    with contextlib.suppress(OSError):  # of which `error` tells
        _flush_output()
    if debug:
        raise error
    _stop(_words(error))


def _flush_output() -> None:
    """Write what is buffered; where that fails, drop it and end without a word if nobody reads our output any more (| head)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        terminal.discard_output(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train and run neural networks split between a client and a server that computes on encrypted activations.",
)  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        from hesplit_native import __version__

        typer.echo(f"hesplit_native {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_show_version, is_eager=True),
) -> None:
    """Options of every command."""


app.command("train")(train.train_command)
app.command("serve")(serve.serve_command)
app.command("predict")(predict.predict_command)
app.command("reproduce")(reproduce.reproduce_command)
app.command("audit")(audit.audit_command)
app.command("certs")(certs.certs_command)
app.command("plan")(plan.plan_command)
app.command("info")(info.info_command)
