"""`hesplit-native info`."""

from __future__ import annotations

import itertools

import typer

from hesplit_native.choices import Packing


def info_command(
    in_features: int = typer.Option(256, min=1),
    out_features: int = typer.Option(5, min=1),
    batch_size: int = typer.Option(4, min=1),
    packing: Packing | None = typer.Option(None, help="Only this one; else both, flooded releases and sealed weights."),
) -> None:
    """Show versions, CPU features, and the recommended parameters with the sizes and times of one step."""
    from rich.console import Console

    from hesplit_native import _core
    from hesplit_native.cli.terminal import print_columns

    console = Console()
    features = [name for name, there in _core.cpu_features().items() if there]
    console.print(f"hesplit_native {_core.__version__}, SEAL {_core.SEAL_VERSION}", highlight=False)
    console.print(
        f"CPU: {', '.join(features) or 'no vector extensions known'}; kernels: {_core.kernels()}; "
        f"{_core.num_threads()} threads",
        highlight=False,
    )
    shape = (in_features, out_features, batch_size)
    measured = []
    if packing != "slots":
        measured.append(("blocks", _measure(*shape, "blocks", 0)))
    if packing is None:
        measured.append(("flooded,\nkey per step", _measure(*shape, "blocks", 1)))
        measured.append(("flooded,\nkey per run", _measure(*shape, "blocks", 1 << 20)))
        measured.append(("sealed", _measure_sealed(*shape)))
    if packing != "blocks":
        measured.append(("slots", _measure(*shape, "slots", 0)))
    print_columns(console, measured, title=f"One step of batch {batch_size}, {in_features} -> {out_features}")


def _measure(in_features: int, out_features: int, batch_size: int, packing: str, releases: int) -> dict[str, str]:
    """Really run one step, a few times; the median counts."""
    from statistics import median
    from time import perf_counter

    import numpy as np

    from hesplit_native.layer.keys import SecretKey
    from hesplit_native.layer.linear import LinearClient, LinearServer
    from hesplit_native.layer.parameters import Parameters
    from hesplit_native.training.report import size

    params = Parameters.recommend(
        in_features=in_features, out_features=out_features, batch_size=batch_size,
        packing="blocks" if packing == "blocks" else "slots", releases=releases,
        activation_bound=32.0 if releases else 64.0,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(out_features, in_features)) / np.sqrt(in_features)
    x = generator.normal(size=(batch_size, in_features))
    key = SecretKey.generate(params)
    client = LinearClient(key, in_features, out_features, fresh_keys=releases == 1)
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
        y = client.decrypt_for_release(reply) if releases else client.decrypt(reply)
        marks.append(perf_counter())
        times.append([1e3 * (b - a) for a, b in itertools.pairwise(marks)])
    encrypt, forward, decrypt = (median(column) for column in zip(*times, strict=True))
    return {
        "ring degree": str(params.ring_degree),
        "modulus (bits)": " + ".join(map(str, params.modulus_bits)),
        "  in all, at most": f"{params.total_bits} <= {params.max_bits}",
        "security": params.strength,
        "scale": f"2^{np.log2(params.scale):g}",
        "error bound": f"{params.error_bound:g}",
        "seen here": f"{np.abs(y - x @ weight.T).max():.1e}",
        "|activation|, row norm <=": f"{params.activation_bound:g}, {params.activation_norm:g}",
        "public material, once": size(len(material)),
        "request": size(len(request)),
        "reply": size(len(reply)),
        "gradients": size(4 * (out_features * (batch_size + in_features) + batch_size * in_features)) + " clear",
        "client": f"{encrypt + decrypt:.3f} ms",
        "server": f"{forward:.3f} ms",
    }


def _measure_sealed(in_features: int, out_features: int, batch_size: int) -> dict[str, str]:
    """A whole training step of sealed weights, backward pass included."""
    from statistics import median
    from time import perf_counter

    import numpy as np

    from hesplit_native.layer.keys import SecretKey
    from hesplit_native.layer.linear import SealedClient, SealedServer
    from hesplit_native.layer.parameters import Parameters
    from hesplit_native.training.report import size

    params = Parameters.recommend_sealed(
        in_features=in_features, out_features=out_features, batch_size=batch_size, activation_bound=32.0
    )
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(out_features, in_features)) / np.sqrt(in_features)
    bias, gradient = np.zeros(out_features), generator.normal(size=(batch_size, out_features)) / batch_size
    x = generator.normal(size=(batch_size, in_features))
    client = SealedClient(SecretKey.generate(params), in_features, out_features)
    material = client.seal(weight, bias)
    server = SealedServer(material)
    times: list[tuple[float, float]] = []
    for _ in range(7):
        marks = [perf_counter()]

        def lap(marks: list[float] = marks) -> None:
            marks.append(perf_counter())

        request = client.encrypt(x)
        lap()
        reply = server.forward(request)
        lap()
        y = client.decrypt(reply)
        update = client.update(gradient, weight, bias)
        lap()
        answer = server.update(update)
        lap()
        client.decrypt_input_gradient(answer)
        lap()
        laps = [1e3 * (b - a) for a, b in itertools.pairwise(marks)]
        times.append((laps[0] + laps[2] + laps[4], laps[1] + laps[3]))
    return {
        "ring degree": str(params.ring_degree),
        "modulus (bits)": " + ".join(map(str, params.modulus_bits)),
        "  in all, at most": f"{params.total_bits} <= {params.max_bits}",
        "security": params.strength,
        "scale": f"2^{np.log2(params.scale):g}",
        "error bound": f"{params.error_bound:g}",
        "seen here": f"{np.abs(y - x @ weight.T).max():.1e}",
        "|activation|, row norm <=": f"{params.activation_bound:g}, {params.activation_norm:g}",
        "public material, once": size(len(material)),
        "request": size(len(request)),
        "reply": size(len(reply)),
        "gradients": size(len(update) + len(answer)) + " sealed",
        "client": f"{median(client for client, _ in times):.3f} ms",
        "server": f"{median(server for _, server in times):.3f} ms",
    }
