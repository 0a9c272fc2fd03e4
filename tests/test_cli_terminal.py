"""Terminals, logs and pipes of all kinds, and paths that cannot be written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hesplit_native.cli import app
from hesplit_native.cli.terminal import accept_all_characters, one_line, print_columns
from hesplit_native.errors import HESplitError

COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()"]
SMALL = ["--epochs", "1", "--limit-batches", "2"]


def run(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = run("train", *SMALL, "--protocol", "plain", "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder / "model.safetensors"


# Encodings


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "koi8-r", "latin-1", "utf-8"])
def test_streams_take_every_character(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    accept_all_characters()
    print("floode… ≤ 3 × ö ─ 文 \udcff", flush=True)
    text = raw.getvalue().decode(encoding)
    assert "\\udcff" in text
    assert ("文" if encoding == "utf-8" else "\\u6587") in text
    if encoding == "ascii":
        assert text.startswith("floode... <= 3 x \\xf6 ")


def test_tables_become_ascii(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    accept_all_characters()
    print_columns(Console(file=stream, width=30), [("naïve", {"x × y": "1 ≤ 2"})], title="Ω…")
    stream.flush()
    assert "x x y" in raw.getvalue().decode("ascii")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["certs", "--help"],
        ["audit", "--rows", "list"],
        ["reproduce", "triad", "--rows", "list"],
        ["plan", "64", "3", "--flooding", "step"],
        ["info", "--in-features", "64", "--batch-size", "2"],
        ["no such command …"],
    ],
)
def test_commands_end_well_where_nothing_is_utf8(arguments):
    done = run(*arguments, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii:strict")
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.returncode == (2 if "…" in arguments[0] else 0)
    (done.stdout + done.stderr).decode("ascii")


def test_a_whole_run_where_nothing_is_utf8(tmp_path):
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
    folder = tmp_path / "Läufe 文"
    done = run("train", *SMALL, "--output", folder, **settings)
    assert done.returncode == 0, done.stderr
    done = run("predict", "--model", folder / "model.safetensors", "--output", folder / "p.csv", **settings)
    assert done.returncode == 0, done.stderr
    assert (folder / "p.csv").read_text(encoding="utf-8").startswith("beat,")
    arguments = ["split-ways", "--quick", "--rows", "ours-local", "--jobs", "1", "--output", folder / "r"]
    done = run("reproduce", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert "<html" in (folder / "r" / "split-ways.html").read_text(encoding="utf-8")


def test_no_text_is_written_in_the_locales_encoding(tmp_path, model):
    for arguments in (
        ["train", *SMALL, "--output", tmp_path / "m"],
        ["predict", "--model", model, "--output", tmp_path / "p.csv"],
        ["certs", tmp_path / "tls"],
        ["audit", "--rows", "vanilla", "--steps", "20", "--output", tmp_path / "a"],
    ):
        done = run(*arguments, PYTHONWARNDEFAULTENCODING="1", PYTHONWARNINGS="default::EncodingWarning")
        assert done.returncode == 0, done.stderr
        ours = [line for line in done.stderr.decode().splitlines() if "EncodingWarning" in line and "hesplit" in line]
        assert not ours


def test_a_line_is_a_line():
    assert one_line("a\nb\r\nc") == "a b c"
    assert one_line("\x1b[31mred\x07 \u202e\udcff") == "\\x1b[31mred\\x07 \\u202e\\udcff"
    assert one_line("Köln ≤ 3") == "Köln ≤ 3"


def test_errors_are_one_line_whatever_they_quote(monkeypatch):
    from hesplit_native.transport import authority

    def fail(folder):
        raise HESplitError("the peer says:\n\x1b]0;owned\x07 done")

    monkeypatch.setattr(authority, "server_hosts", fail)
    result = invoke("certs", "anywhere")
    assert result.exit_code == 1
    assert result.stderr == "error: the peer says: \\x1b]0;owned\\x07 done\n"


# Widths


def text_of(columns, width, **options):
    console = Console(file=io.StringIO(), width=width)
    print_columns(console, columns, **options)
    return console.file.getvalue()


def test_columns_that_do_not_fit_go_below(tmp_path):
    columns = [(f"column {i}", {"first": f"{i}" * 12, "second": "x"}) for i in range(6)]
    wide, narrow = (text_of(columns, width, title="Title", caption="Caption") for width in (200, 60))
    assert wide.count("first") == 1
    assert narrow.count("first") == 2
    for text in (wide, narrow):
        assert text.count("Title") == text.count("Caption") == 1
        assert all(f"column {i}" in text and f"{i}" * 12 in text for i in range(6))
    assert max(map(len, narrow.splitlines())) <= 60


def test_a_column_wider_than_the_terminal_is_folded_not_cut():
    text = text_of([("name", {"row": "x" * 50})], 30, title="T")
    assert text.count("x") == 50
    assert "…" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["info", "--in-features", "3000", "--out-features", "70"],
        ["plan", "256", "5", "--flooding", "run"],
        ["plan", "1024", "512"],
        ["train", *SMALL, "--output", "m"],
        ["train", *SMALL, "--protocol", "hesplit", "--output", "m"],
        ["train", *SMALL, "--protocol", "sealed", "--output", "m"],
        ["audit", "--rows", "splitways, flooded, n=8", "--steps", "20", "--output", "a"],
    ],
)
def test_nothing_is_cut_at_80_columns(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    long = [line for line in result.output.splitlines() if len(line) > 80]
    assert all(line.startswith("Parameters.from_bytes") for line in long)


# Paths


@pytest.mark.parametrize("where", ["{file}", "{file}/below", "/dev/null/x", "/proc/nowhere"])
def test_outputs_that_cannot_be_written_are_named_before_the_work(where, tmp_path, model, monkeypatch):
    import hesplit_native.cli.options as options

    def unreached(*arguments, **named):
        raise AssertionError("work began")

    (tmp_path / "file").touch()
    path = where.format(file=tmp_path / "file")
    for module in ("audit", "predict", "train"):
        monkeypatch.setattr(sys.modules[f"hesplit_native.cli.{module}"], "load_dataset", unreached)
    monkeypatch.setattr(options, "load_dataset", unreached)
    monkeypatch.setattr("hesplit_native.reproduce.runner.run", unreached)
    for arguments in (
        ["train", "--output", path],
        ["predict", "--model", model, "--output", f"{path}/p.csv"],
        ["audit", "--output", path],
        ["audit", "--output", tmp_path / "a", "--save", path],
        ["reproduce", "hesplit", "--quick", "--output", path],
        ["certs", path],
        ["serve", "--port", "0", "--output", path],
        ["serve", "--port", "0", "--checkpoints", path],
        ["serve", "--port", "0", "--tls", path],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1, (arguments, result.output, result.exception)
        assert len(result.stderr.splitlines()) == 1
        assert path in result.stderr


def test_predictions_go_to_new_folders_existing_files_and_devices(tmp_path, model, monkeypatch):
    old = tmp_path / "old.csv"
    old.write_text("old")
    for path in (tmp_path / "new" / "p.csv", old, Path("/dev/null")):
        result = invoke("predict", "--model", model, "--plain", "--output", path)
        assert result.exit_code == 0, result.output
    assert old.read_text().startswith("beat,")
    assert (tmp_path / "new" / "p.csv").is_file()
    result = invoke("predict", "--model", model, "--plain", "--output", tmp_path)
    assert result.exit_code == 1
    assert "folder" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/a/b"),
        OSError(28, "No space left on device", "/a/b"),
        OSError(30, "Read-only file system", "/a/b"),
        NotADirectoryError(20, "Not a directory", "/a/b"),
        FileNotFoundError(2, "No such file or directory", "/a/b", None, "/c"),
        OSError("without a number"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, monkeypatch):
    from hesplit_native.transport import authority

    def fail(folder):
        raise error

    monkeypatch.setattr(authority, "server_hosts", fail)
    result = invoke("certs", "anywhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert (error.strerror or "without a number") in result.stderr
    if error.filename:
        assert "/a/b" in result.stderr
    with pytest.raises(OSError, match=r"number|Errno"):
        CliRunner().invoke(app, ["--debug", "certs", "anywhere"], catch_exceptions=False)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["info"], ["plan", "64", "5"], ["train", "--help"], ["--version"]])
def test_a_full_disk_is_one_line(arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, env=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert b"No space left" in done.stderr


# Endings


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["reproduce", "hesplit", "--rows", "list"], ["train", "--help"], ["plan", "64", "5"], ["info"]]
)
def test_a_reader_that_goes_away_ends_a_command_quietly(arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False, env=environment
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_pipe_that_breaks_elsewhere_is_told(monkeypatch):
    from hesplit_native.transport import authority

    def fail(folder):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(authority, "server_hosts", fail)
    result = invoke("certs", "anywhere")
    assert result.exit_code == 1
    assert "Broken pipe" in result.stderr


def test_an_interrupted_command_ends_with_130(monkeypatch):
    from hesplit_native.transport import authority

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(authority, "server_hosts", interrupt)
    result = invoke("certs", "anywhere")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


# No home


def test_commands_work_without_a_home(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, pwd\n"
        "def nobody(*ignored): raise KeyError('uid not found')\n"
        "pwd.getpwuid = nobody\nos.environ.pop('HOME', None)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "HOME"))}
    for arguments in (
        ["info", "--packing", "blocks"],
        ["train", *SMALL, "--output", tmp_path / "m"],
        ["predict", "--model", tmp_path / "m" / "model.safetensors"],
        ["certs", tmp_path / "tls"],
        ["audit", "--rows", "vanilla", "--steps", "20", "--output", tmp_path / "a"],
    ):
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
