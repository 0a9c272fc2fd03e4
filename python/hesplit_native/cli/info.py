"""`hesplit-native info`."""

from __future__ import annotations

import itertools

import typer

from hesplit_native.cli.options import PackingName


def info_command(
    in_features: int = typer.Option(256, min=1),
    out_features: int = typer.Option(5, min=1),
    batch_size: int = typer.Option(4, min=1),
    packing: PackingName | None = typer.Option(None, help="Both when left out."),
) -> None:
    """Show versions, CPU features, and the recommended parameters with the sizes and times of one step."""
    from rich.console import Console
    from rich.table import Table

    from hesplit_native import _core

    console = Console()
    features = [name for name, there in _core.cpu_features().items() if there]
    console.print(f"hesplit_native {_core.__version__}, SEAL {_core.SEAL_VERSION}", highlight=False)
    console.print(
        f"CPU: {', '.join(features) or 'no vector extensions known'}; {_core.num_threads()} threads", highlight=False
    )
    table = Table(title=f"One step of batch {batch_size}, {in_features} -> {out_features}", title_justify="left")
    table.add_column("", no_wrap=True)
    columns = [packing.value] if packing else [name.value for name in PackingName]
    measured = []
    for name in columns:
        table.add_column(name, justify="right")
        measured.append(_measure(in_features, out_features, batch_size, name))
    for key in measured[0]:
        table.add_row(key, *(column[key] for column in measured))
    console.print(table)


def _measure(in_features: int, out_features: int, batch_size: int, packing: str) -> dict[str, str]:
    """Really run one step, a few times; the median counts."""
    from statistics import median
    from time import perf_counter

    import numpy as np

    from hesplit_native.keys import SecretKey
    from hesplit_native.linear import LinearClient, LinearServer
    from hesplit_native.parameters import Parameters
    from hesplit_native.report import size

    params = Parameters.recommend(
        in_features=in_features, out_features=out_features, batch_size=batch_size,
        packing="blocks" if packing == "blocks" else "slots",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(out_features, in_features)) / np.sqrt(in_features)
    x = generator.normal(size=(batch_size, in_features))
    client = LinearClient(SecretKey.generate(params), in_features, out_features)
    material = client.public_material()
    server = LinearServer(material, weight)
    times = []
    for _ in range(7):
        marks = [perf_counter()]
        request = client.encrypt(x)
        marks.append(perf_counter())
        server.set_weight(weight)
        reply = server.forward(request)
        marks.append(perf_counter())
        y = client.decrypt(reply)
        marks.append(perf_counter())
        times.append([1e3 * (b - a) for a, b in itertools.pairwise(marks)])
    encrypt, forward, decrypt = (median(column) for column in zip(*times, strict=True))
    return {
        "ring degree": str(params.ring_degree),
        "modulus (bits)": " + ".join(map(str, params.modulus_bits)),
        "security": f"128 bits ({params.total_bits} <= {params.max_bits})",
        "scale": f"2^{np.log2(params.scale):g}",
        "error bound": f"{params.error_bound:g}",
        "seen here": f"{np.abs(y - x @ weight.T).max():.1e}",
        "|activation|, row norm <=": f"{params.activation_bound:g}, {params.activation_norm:g}",
        "public material, once": size(len(material)),
        "request": size(len(request)),
        "reply": size(len(reply)),
        "gradients in the clear": size(4 * (out_features * (batch_size + in_features) + batch_size * in_features)),
        "encrypt": f"{encrypt:.3f} ms",
        "encode weights, forward": f"{forward:.3f} ms",
        "decrypt": f"{decrypt:.3f} ms",
    }
