"""The asv suite over commits of the project: each is built beside the others, measured, and all results become one HTML.

    python -m benchmarks.history --machine epyc-zen4 578de20 main~50 main [--bench '^bench_forward'] [--html .asv/html]

asv itself builds a commit in an environment with all that the package needs, PyTorch too. Here this interpreter, which has it all,
is every commit's, and only the package is built, into build/history, where it stays for the next time. Benchmarks are those of the
working tree: what a commit cannot do yet has no point in its graph.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILDS = ROOT / "build" / "history"
RESULTS = ROOT / "benchmarks" / "results"
# Minutes a commit: kernels, a layer's calls, messages. The rest of the suite trains.
QUICK = r"^bench_kernels\.Kernels|^bench_(encrypt|forward|decrypt)\.|^bench_frozen\.|^bench_wire\.MessageBytes"


def resolve(names: Sequence[str], root: Path = ROOT) -> list[str]:
    """Full hashes of commits, oldest first, each once."""
    named = ["git", "-C", str(root), "rev-parse", "--verify", "--end-of-options"]
    hashes = {subprocess.check_output([*named, f"{name}^{{commit}}"], text=True).strip() for name in names}
    if not hashes:
        return []
    ordered = ["git", "-C", str(root), "rev-list", "--no-walk=sorted", "--reverse", *hashes]
    return subprocess.check_output(ordered, text=True).split()


def build(commit: str, arguments: Sequence[str]) -> Path:
    """The folder that the commit's package is installed in, without what it depends on."""
    site, tree = BUILDS / commit / "site", BUILDS / commit / "tree"
    if (site / "hesplit_native").is_dir():
        return site
    if not tree.exists():
        subprocess.check_call(["git", "-C", str(ROOT), "worktree", "add", "--force", "--detach", str(tree), commit])
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.check_call([*pip, "-C", "cmake.define.HESPLIT_TESTING=ON", *arguments, str(tree)])
    subprocess.check_call(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])
    return site


def asv(*arguments: str, site: Path | None = None) -> int:
    """Run asv; what stands in `site` is what benchmarks import. Its status: 2 where some benchmark failed."""
    environment = dict(os.environ)
    if site is not None:
        environment["ASV_PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", "asv", *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 2):
        raise subprocess.CalledProcessError(status, command)
    return status


def forget_path(results: Path) -> None:
    """Take the interpreter's path, which asv makes a part of the environment's name, out of all results."""
    path = sys.executable.replace(os.sep, "_")
    for file in results.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        file.unlink()
        file.with_name(file.name.replace(path, "")).write_text(text.replace(path, ""), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commits", nargs="*", help="what git calls them; none: publish what has been measured")
    parser.add_argument(
        "--machine", default="this", help="what the machine is called in the results, benchmarks/results/NAME"
    )
    parser.add_argument("--bench", default=QUICK, help="a regular expression of benchmarks")
    parser.add_argument("--pip", default="", help="arguments of `pip install`, e.g. '--no-build-isolation'")
    parser.add_argument("--build-only", action="store_true", help="measure later, when the machine is idle")
    parser.add_argument("--html", default=".asv/html", help="where the pages go, from the root of the project")
    options = parser.parse_args(arguments)
    commits = resolve(options.commits)
    sites = [build(commit, options.pip.split()) for commit in commits]
    if options.build_only:
        return
    if commits:
        asv("machine", "--yes", f"--machine={options.machine}")
    for commit, site in zip(commits, sites, strict=True):
        run = [
            "run",
            "--python=same",
            f"--set-commit-hash={commit}",
            f"--machine={options.machine}",
            f"--bench={options.bench}",
        ]
        asv(*run, "--quick", site=site)
        forget_path(RESULTS / options.machine)
    asv("publish", f"--html-dir={options.html}")


if __name__ == "__main__":
    main()
