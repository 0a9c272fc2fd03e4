"""Run every fuzzer for a while, one after the other, and print what each has done.

python cpp/fuzz/campaign.py build/fuzz/cpp/fuzz --seconds 60

Each fuzzer first runs through its regressions (cpp/fuzz/regressions/NAME) and through the corpus that earlier campaigns have left in
the build folder, then goes on from there. What makes one fail is kept beside the programs, as finding-NAME-..., and makes this
program fail too: run the fuzzer with that file as its argument, mend the fault, and add the file to the regressions.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path

REGRESSIONS = Path(__file__).parent / "regressions"
GOAL = 10**8
# No genuine message of a fuzzed layer is longer, none takes longer, and nothing may allocate more for one.
LIMITS = ["-max_len=65536", "-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=512"]


def run(program: Path, seconds: int) -> tuple[int, dict[str, int]]:
    """Fuzz with one program: its exit code, and what libFuzzer counted."""
    name = program.name.removeprefix("fuzz_")
    corpus = program.parent / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    folders = [corpus, *[folder for folder in [REGRESSIONS / name] if folder.is_dir()]]
    command = [
        program, *LIMITS, "-len_control=0", f"-max_total_time={seconds}", "-print_final_stats=1",
        f"-artifact_prefix={program.parent}/finding-{name}-", *folders,
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    log = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counts = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s+(\d+)", log.stdout, re.MULTILINE)}
    edges = re.findall(r"cov: (\d+)", log.stdout)
    counts["edges"] = int(edges[-1]) if edges else 0
    # Of processor time: on a busy machine it is what others can be compared with.
    counts["rate"] = round(counts.get("number_of_executed_units", 0) / max(processor, 1e-3))
    (program.parent / f"log-{name}.txt").write_text(log.stdout)
    if log.returncode != 0:
        print(log.stdout[-6000:])
    return log.returncode, counts


def main() -> int:
    """The command line; 1 when there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the fuzzers were built")
    parser.add_argument("--seconds", type=int, default=60, help="for each fuzzer (60)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these fuzzers instead of all")
    options = parser.parse_args()
    programs = sorted(path for path in options.folder.resolve().glob("fuzz_*") if path.is_file())
    programs = [path for path in programs if not options.only or path.name.removeprefix("fuzz_") in options.only]
    if not programs:
        parser.error(f"no such fuzzer in {options.folder}")
    failed, total, rates = [], 0, []
    print(
        "| entry | executions | per second of processor time | edges reached | peak memory |\n|---|---:|---:|---:|---:|"
    )
    for program in programs:
        code, counts = run(program, options.seconds)
        executions, rate = counts.get("number_of_executed_units", 0), counts["rate"]
        total += executions
        rates.append(rate)
        name = program.name.removeprefix("fuzz_")
        print(
            f"| `{name}` | {executions:,} | {rate:,} | {counts['edges']:,} | {counts.get('peak_rss_mb', 0)} MB |",
            flush=True,
        )
        if code != 0:
            failed.append(name)
    print(f"| all | {total:,} | | | |")
    if all(rates):
        hours = sum(GOAL / len(rates) / rate for rate in rates) / 3600
        print(f"\nAt this rate {GOAL:,} executions, as many on each entry, take {hours:.1f} hours of one core.")
    if failed:
        print(f"findings in: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
