"""`hesplit-native plan`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import typer

from hesplit_native.choices import Attacker, Flooding

if TYPE_CHECKING:
    from rich.console import Console

    from hesplit_native.layer.planner import Plan

_FROZEN_WEIGHTS = 1 << 24  # beyond this it takes more than some seconds to prepare the layer

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def bits_per_second(text: str) -> float:
    """A number of bits per second from text like 100Mbit/s, 1G or 56k; ParameterError for other text."""
    from hesplit_native.errors import ParameterError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:b(?:it)?)?(?:/s|ps)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ParameterError(f"expected a speed like 100Mbit/s, got {text!r}")
    return float(found[1]) * _UNITS[found[2].lower()]


def plan_command(
    in_features: int = typer.Argument(..., min=1, max=1 << 20),
    out_features: int = typer.Argument(..., min=1, max=1 << 20),
    batch_size: int = typer.Option(4, min=1, max=65536),
    link: str = typer.Option("1Gbit/s", help="Speed of the link between client and server."),
    flooding: Flooding = typer.Option("off", help="Whether decryptions are released, and under which keys."),
    error_bound: float | None = typer.Option(None, min=1e-9, help="Largest error of a logit."),
    activation_bound: float = typer.Option(64.0, min=1e-9, help="Largest activation."),
    weight_norm: float = typer.Option(16.0, min=1e-9, help="Largest l2 norm of a row of the weight."),
    security: Attacker = typer.Option("standard", help="128 bits against classical or against quantum computers."),
    statistical_bits: int = typer.Option(30, min=20, max=60, help="Statistical security of flooded releases."),
    private_weights: bool = typer.Option(False, "--private-weights", help="Replies that hide the server's weights."),
) -> None:
    """Choose ring degree, moduli, packing width, reply bits and threads for a layer and a link, and say why."""
    from rich.console import Console

    from hesplit_native.cli.terminal import print_columns
    from hesplit_native.layer.planner import plans
    from hesplit_native.training.report import size

    console = Console()
    speed = bits_per_second(link)
    found = plans(
        in_features, out_features, batch_size, link=speed, flooding=flooding, error_bound=error_bound,
        activation_bound=activation_bound, weight_norm=weight_norm,
        security=security, statistical_bits=statistical_bits, private_weights=private_weights,
    )  # fmt: skip
    # What is chosen is what took least here: the predictions are of other machines.
    both = [(plan, _measured(plan, in_features, out_features, batch_size, speed)) for plan in found]
    both.sort(key=lambda pair: pair[1].seconds)
    found = [plan for plan, _ in both]
    rows = _rows(found, [plan for _, plan in both])
    print_columns(
        console,
        [
            (
                f"{plan.parameters.packing}, N = {plan.parameters.ring_degree}",
                {name: values[i] for name, values in rows},
            )
            for i, plan in enumerate(found)
        ],
        title=f"One step of batch {batch_size}, {in_features} -> {out_features}, over {speed / 1e6:g} Mbit/s",
        caption="Milliseconds of one core at each side, weights new in every step: predicted, and measured here.",
    )
    best = both[0][1]
    parts = {"the link": best.link_seconds, "the server": best.server_seconds, "the client": best.client_seconds}
    longest = max(parts, key=lambda part: parts[part])
    console.print(
        f"Chosen: {best.parameters.packing}, N = {best.parameters.ring_degree}, "
        f"{size(best.request_bytes + best.reply_bytes)} a step; most of its time "
        f"is that of {longest}." + ("" if len(found) > 1 else " Nothing else holds the layer."),
        highlight=False,
    )
    console.print(
        f"Parameters.from_bytes(bytes.fromhex({best.parameters.to_bytes().hex()!r}))", highlight=False, soft_wrap=True
    )
    if in_features * out_features <= _FROZEN_WEIGHTS and not private_weights:
        from hesplit_native.layer.frozen import MAX_ROWS

        _print_frozen(console, in_features, out_features, min(batch_size, MAX_ROWS), speed)


def _print_frozen(console: Console, in_features: int, out_features: int, rows: int, link: float) -> None:
    """The same layer with weights that do not change, and whether its client has less to do than with the weights at hand."""
    from hesplit_native.cli.frozen_costs import measure_frozen
    from hesplit_native.cli.terminal import print_columns
    from hesplit_native.training.report import size

    found = [measure_frozen(in_features, out_features, rows, precision) for precision in ("float32", "bfloat16")]
    print_columns(
        console,
        [
            (
                f"precision {cost.precision}",
                {
                    "error of an output, of |x| |w|": f"{cost.error:.1e}",
                    "request": size(cost.request_bytes),
                    "reply": size(cost.reply_bytes),
                    "hint, once": size(cost.hint_bytes),
                    "client, measured": f"{1e3 * cost.client_seconds:.3f}",
                    "server, measured": f"{1e3 * cost.server_seconds:.3f}",
                    "link": f"{8e3 * (cost.request_bytes + cost.reply_bytes) / link:.3f}",
                    "the layer in the clear, measured": f"{1e3 * cost.clear_seconds:.3f}",
                },
            )
            for cost in found
        ],
        title=f"The same layer if its weights do not change (serve --model), {rows} row{'s' * (rows > 1)}",
    )
    share = found[0].client_seconds / found[0].clear_seconds
    console.print(
        f"Its client works {share:.1f} times as long as the layer takes in the clear here: "
        + (
            "that saves it work."
            if share < 1
            else "offload it because the weights are not the client's to have, not to save work."
        ),
        highlight=False,
    )


def _rows(found: list[Plan], measured: list[Plan]) -> list[tuple[str, list[str]]]:
    from hesplit_native.training.report import size

    def each(text: object, of: list[Plan] = found) -> list[str]:
        assert callable(text)
        return [text(plan) for plan in of]

    return [
        ("modulus, bits", each(lambda p: " + ".join(map(str, p.parameters.modulus_bits)))),
        ("security", each(lambda p: p.parameters.strength)),
        ("scale of activations", each(lambda p: f"2^{p.parameters.scale.hex().split('p')[1].lstrip('+')}")),
        ("width k", each(lambda p: str(p.width))),
        ("input ciphertexts x products", each(lambda p: f"{p.inputs} x {p.products}")),
        ("bits of a reply's coefficient", each(lambda p: str(p.reply_bits))),
        ("error of a logit, at most", each(lambda p: f"{p.error:.1e}")),
        ("deviation of flooding", each(lambda p: f"{p.flooding_deviation:.2g}")),
        ("deviation of what hides weights", each(lambda p: f"{p.logit_noise:.2g}")),
        ("evaluation keys, once", each(lambda p: size(p.key_bytes) if p.key_bytes else "none")),
        ("request", each(lambda p: size(p.request_bytes))),
        ("reply", each(lambda p: size(p.reply_bytes))),
        ("client, predicted", each(lambda p: f"{1e3 * p.client_seconds:.3f}")),
        ("client, measured", each(lambda p: f"{1e3 * p.client_seconds:.3f}", measured)),
        ("server, predicted", each(lambda p: f"{1e3 * p.server_seconds:.3f}")),
        ("server, measured", each(lambda p: f"{1e3 * p.server_seconds:.3f}", measured)),
        ("link", each(lambda p: f"{1e3 * p.link_seconds:.3f}")),
        ("threads at each side", each(lambda p: str(p.threads))),
        ("step, predicted", each(lambda p: f"{1e3 * p.seconds:.3f}")),
        ("step, measured", each(lambda p: f"{1e3 * p.seconds:.3f}", measured)),
    ]


def _measured(plan: Plan, in_features: int, out_features: int, batch_size: int, link: float) -> Plan:
    """The plan with seconds of client and server for one step, on one thread, as they were here: the best of a few."""
    from dataclasses import replace
    from time import perf_counter

    import numpy as np

    from hesplit_native import _core
    from hesplit_native.layer.keys import SecretKey
    from hesplit_native.layer.linear import LinearClient, LinearServer

    generator = np.random.default_rng(0)
    weight = generator.normal(size=(out_features, in_features)) / np.sqrt(in_features)
    bias = np.zeros(out_features)
    x = generator.normal(size=(batch_size, in_features)).astype(np.float32)
    key = SecretKey.generate(plan.parameters)
    fresh_keys = plan.parameters.releases == 1 and not plan.parameters.private_bits
    client = LinearClient(key, in_features, out_features, fresh_keys=fresh_keys, link=link)
    server = LinearServer(client.public_material(), weight, bias)
    threads, ahead = _core.num_threads(), _core.work_ahead()
    best = [float("inf"), float("inf")]
    try:
        _core.set_num_threads(1)
        _core.set_work_ahead(False)
        deadline = perf_counter() + 0.3
        while perf_counter() < deadline or best[0] == float("inf"):
            start = perf_counter()
            request = client.encrypt(x)
            encrypted = perf_counter()
            server.set_weight(weight, bias)
            reply = server.forward(request)
            served = perf_counter()
            client.decrypt(reply)
            done = perf_counter()
            best = [min(best[0], encrypted - start + done - served), min(best[1], served - encrypted)]
    finally:
        _core.set_num_threads(threads)
        _core.set_work_ahead(ahead)
    return replace(plan, client_seconds=best[0], server_seconds=best[1])
