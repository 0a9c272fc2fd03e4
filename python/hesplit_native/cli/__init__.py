"""The command line: `hesplit-native train | serve | predict | reproduce | audit | certs | plan | info`."""

from __future__ import annotations

from typing import Any

import typer
import typer.core

from hesplit_native.cli import audit, certs, info, plan, predict, reproduce, serve, train


class _Group(typer.core.TyperGroup):
    """Turns the package's own errors into one readable line; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        from hesplit_native.errors import HESplitError

        try:
            return super().invoke(ctx)
        except HESplitError as error:
            if ctx.params.get("debug"):
                raise
            from rich.console import Console

            Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
            raise SystemExit(1) from None


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train and run neural networks split between a client and a server that computes on encrypted activations.",
)  # fmt: skip


@app.callback()
def main(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Options of every command."""


app.command("train")(train.train_command)
app.command("serve")(serve.serve_command)
app.command("predict")(predict.predict_command)
app.command("reproduce")(reproduce.reproduce_command)
app.command("audit")(audit.audit_command)
app.command("certs")(certs.certs_command)
app.command("plan")(plan.plan_command)
app.command("info")(info.info_command)
