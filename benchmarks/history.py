"""The asv suite over commits of the project: each is built beside the others, measured, and all results become one HTML.

    python -m benchmarks.history --machine epyc-zen4 578de20 main~50 main [--bench '^bench_forward'] [--html .asv/html]

asv itself builds a commit in an environment with all that the package needs, PyTorch too. Here this interpreter, which has it all,
is every commit's, and only the package is built, into build/history, where it stays for the next time. Benchmarks are those of the
working tree: what a commit cannot do yet has no point in its graph.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILDS = ROOT / "build" / "history"
PIP = (sys.executable, "-m", "pip", "install")
RESULTS = ROOT / "benchmarks" / "results"
# Medians of seven short samples, CPU time where a benchmark is of one thread: other work moves them little.
SAMPLES = {"warmup_time": 0.05, "sample_time": 0.005, "repeat": 7, "rounds": 1}
# Minutes a commit: kernels, a layer's calls and messages. The rest of the suite trains.
QUICK = r"^bench_kernels\.Kernels|^bench_(encrypt|forward|decrypt)\.|^bench_frozen\."


def resolve(names: Sequence[str], root: Path = ROOT) -> list[str]:
    """Full hashes of commits, oldest first, each once."""
    named = ["git", "-C", str(root), "rev-parse", "--verify", "--end-of-options"]
    hashes = {subprocess.check_output([*named, f"{name}^{{commit}}"], text=True).strip() for name in names}
    if not hashes:
        return []
    ordered = ["git", "-C", str(root), "rev-list", "--no-walk=sorted", "--reverse", *hashes]
    return subprocess.check_output(ordered, text=True).split()


def check_tools() -> None:
    """Exit with what is missing, before minutes are spent on a build."""
    if importlib.util.find_spec("asv") is None:
        sys.exit("asv is not installed; it is one of the package's extra: pip install -c constraints.txt '.[bench]'")
    # Since pip 22.1; its short form, -C, since 23.1.
    help_text = subprocess.run([*PIP, "--help"], capture_output=True, text=True, check=False)
    if "--config-settings" not in help_text.stdout:
        sys.exit(
            f"this interpreter's pip cannot pass settings to a build (--config-settings, pip 22.1): {sys.executable} -m pip install "
            f"--upgrade pip\n{help_text.stderr}".rstrip()
        )


def build(commit: str, arguments: Sequence[str]) -> Path:
    """The folder that the commit's package is installed in, without what it depends on.

    Commits from before there was HESPLIT_TESTING are built all the same: CMake passes over what it does not know.
    """
    site, tree, partial = (BUILDS / commit / name for name in ("site", "tree", "partial"))
    if (site / "hesplit_native").is_dir():
        return site
    if not tree.exists():
        subprocess.check_call(["git", "-C", str(ROOT), "worktree", "add", "--force", "--detach", str(tree), commit])
    shutil.rmtree(partial, ignore_errors=True)
    pip = [*PIP, "--quiet", "--no-deps", f"--target={partial}", "--config-settings=cmake.define.HESPLIT_TESTING=ON"]
    status = subprocess.run([*pip, *arguments, str(tree)], check=False).returncode
    if status != 0:
        sys.exit(
            f"{commit[:10]} was not built: pip ended with {status}, for the reason above. What a commit's build needs can be given "
            f"with --pip (for example --pip='--no-build-isolation'); its files are in {tree}"
        )
    subprocess.check_call(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)])
    partial.rename(site)  # whole, or not there
    return site


IMPORTABLE = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except (ImportError, AttributeError):
        continue
    print(name)
"""


def suite(site: Path, into: Path) -> Path:
    """The configuration of a suite of those benchmarks that find in `site` what they import; asv stops at the first that does not."""
    copy = into / "benchmarks"
    shutil.rmtree(into, ignore_errors=True)
    copy.mkdir(parents=True)
    files = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    for path in files.values():
        shutil.copy(path, copy)
    paths = os.pathsep.join(map(str, (site, into)))
    command = [sys.executable, "-c", IMPORTABLE, *sorted(files.keys() - {"__init__"})]
    found = subprocess.check_output(command, text=True, cwd=into, env=os.environ | {"PYTHONPATH": paths}).split()
    for name in files.keys() - {"__init__", *found}:
        (copy / f"{name}.py").unlink()
    configuration = json.loads((ROOT / "asv.conf.json").read_text(encoding="utf-8"))
    for key in ("repo", "env_dir", "results_dir", "html_dir"):
        configuration[key] = str(ROOT / configuration[key])
    path = into / "asv.conf.json"
    path.write_text(json.dumps(configuration), encoding="utf-8")
    return path


def asv(*arguments: str, site: Path | None = None) -> int:
    """Run asv; what stands in `site` is what benchmarks import. Its status: 2 where some benchmark failed."""
    environment = dict(os.environ)
    command = [sys.executable, "-m", "asv", *arguments]
    if site is not None:
        environment["ASV_PYTHONPATH"] = str(site)
        command.append(f"--config={suite(site, BUILDS / 'suite')}")
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 2):
        raise subprocess.CalledProcessError(status, command)
    return status


def forget_path(results: Path) -> None:
    """Put this interpreter's version where asv writes its path, which is a part of the environment's name, too."""
    path = sys.executable.replace(os.sep, "_")
    for file in results.glob("*.json"):
        text = file.read_text(encoding="utf-8").replace(path, "").replace(sys.executable, platform.python_version())
        file.unlink()
        file.with_name(file.name.replace(path, "")).write_text(text, encoding="utf-8")


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
    check_tools()
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
            "--launch-method=forkserver",  # imports once, not for every set of parameters
        ]
        asv(*run, *(f"--attribute={name}={value}" for name, value in SAMPLES.items()), site=site)
        forget_path(RESULTS / options.machine)
    asv("publish", f"--html-dir={options.html}")


if __name__ == "__main__":
    main()
