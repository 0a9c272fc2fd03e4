"""The built extension (static SEAL, nothing exported) and the recipe that obtains SEAL."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "third_party" / "SEAL"
PINNED_SHA256 = "0375b83b5a83026924f59db25c4efa9f27e1e8a66d004658f4d24195986a04b6"


def tool(name: str) -> str:
    """Path of a command-line tool; skips the test where the machine does not have it."""
    path = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if path is None:
        pytest.skip(f"{name} is neither on PATH nor beside Python")
    return path


@pytest.fixture(scope="module", params=["_core", "_testing"])
def extension(request: pytest.FixtureRequest) -> Path:
    spec = importlib.util.find_spec(f"hesplit_native.{request.param}")
    assert spec is not None, f"hesplit_native.{request.param} is not installed"
    assert spec.origin is not None
    return Path(spec.origin)


def run_recipe(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run CMake code that uses the functions of fetch.cmake, in script mode."""
    file = folder / "recipe.cmake"
    file.write_text(
        f'cmake_minimum_required(VERSION 3.25)\ninclude("{RECIPE}/fetch.cmake")\n{script}\n', encoding="utf-8"
    )
    return subprocess.run(
        [tool("cmake"), "-P", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HESPLIT_CACHE_DIR": str(folder / "cache"), **environment},
    )


class TestExtension:
    def test_is_a_shared_library(self, extension: Path) -> None:
        assert extension.suffix == ".so"
        assert extension.stat().st_size > 10_000

    def test_has_the_version_of_the_package(self) -> None:
        from hesplit_native import _core

        assert _core.__version__ == version("hesplit_native")

    def test_what_tests_need_is_left_out_of_a_plain_installation(self) -> None:
        settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        assert re.search(r'^HESPLIT_TESTING = "OFF"', settings, re.MULTILINE)
        assert re.search(r'^wheel\.exclude = .*"hesplit_native/_testing\.pyi"', settings, re.MULTILINE)

    def test_the_core_has_no_helpers_of_the_tests(self) -> None:
        from hesplit_native import _core, _testing

        assert not set(dir(_core)) & {name for name in dir(_testing) if not name.startswith("__")}

    def test_loads_no_seal_library(self, extension: Path) -> None:
        listing = subprocess.run([tool("ldd"), str(extension)], capture_output=True, text=True, check=True).stdout
        assert "libc" in listing
        assert not re.search(r"seal|gsl|libz|zstd|hexl", listing, re.IGNORECASE)

    def test_exports_its_init_function_and_nothing_else(self, extension: Path) -> None:
        listing = subprocess.run(
            [tool("nm"), "-D", "--defined-only", str(extension)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        names = [line.split()[-1] for line in listing.splitlines()]
        assert names == [f"PyInit_{extension.name.split('.')[0]}"]


class TestRecipe:
    def test_holds_no_seal_source(self) -> None:
        kinds = {path.suffix for path in RECIPE.rglob("*") if path.is_file()}
        assert ".cmake" in kinds
        assert not kinds & {".c", ".cc", ".cpp", ".h", ".hpp", ".gz", ".zip"}

    def test_pins_the_archive(self, tmp_path: Path) -> None:
        done = run_recipe('message("${HESPLIT_SEAL_ARCHIVE} ${HESPLIT_SEAL_SHA256}")', tmp_path)
        assert done.stderr.split() == ["pyfhel-3.5.0.tar.gz", PINNED_SHA256]

    def test_accepts_a_file_with_the_expected_hash(self, tmp_path: Path) -> None:
        archive = tmp_path / "archive.tar.gz"
        archive.write_bytes(b"expected")
        digest = hashlib.sha256(b"expected").hexdigest()
        done = run_recipe(f'hesplit_seal_verify("{archive}" {digest})', tmp_path)
        assert done.returncode == 0, done.stderr
        assert archive.exists()

    def test_refuses_and_deletes_a_file_with_another_hash(self, tmp_path: Path) -> None:
        archive = tmp_path / "archive.tar.gz"
        archive.write_bytes(b"something else")
        digest = hashlib.sha256(b"expected").hexdigest()
        done = run_recipe(f'hesplit_seal_verify("{archive}" {digest})', tmp_path)
        assert done.returncode != 0
        assert "Wrong hash" in done.stderr
        assert "HESPLIT_SEAL_SOURCE_DIR" in done.stderr
        assert not archive.exists()

    def test_refuses_a_poisoned_cache(self, tmp_path: Path) -> None:
        archive = tmp_path / "cache" / "pyfhel-3.5.0.tar.gz"
        archive.parent.mkdir()
        archive.write_bytes(b"poison")
        done = run_recipe("hesplit_seal_archive(path)", tmp_path)
        assert done.returncode != 0
        assert "Wrong hash" in done.stderr
        assert not archive.exists()

    def test_says_what_to_do_when_pip_fails(self, tmp_path: Path) -> None:
        pip = tmp_path / "python-without-network"
        pip.write_text("#!/bin/sh\necho 'could not connect'\nexit 1\n")
        pip.chmod(0o755)
        done = run_recipe(f'set(Python_EXECUTABLE "{pip}")\nhesplit_seal_archive(path)', tmp_path)
        assert done.returncode != 0
        assert "No SEAL source" in done.stderr
        assert "could not connect" in done.stderr
        assert "HESPLIT_SEAL_SOURCE_DIR" in done.stderr
        assert str(tmp_path / "cache") in done.stderr
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({"HESPLIT_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
            ({"HESPLIT_CACHE_DIR": "", "XDG_CACHE_HOME": "/x"}, "/x/hesplit_native/seal"),
            (
                {"HESPLIT_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/h"},
                "/h/.cache/hesplit_native/seal",
            ),
        ],
    )
    def test_finds_its_cache_folder(self, tmp_path: Path, environment: dict[str, str], expected: str) -> None:
        done = run_recipe('hesplit_seal_cache_dir(path)\nmessage("${path}")', tmp_path, **environment)
        assert done.stderr.strip() == expected

    @pytest.mark.parametrize("environment", [{"XDG_CACHE_HOME": "{file}/x"}, {"XDG_CACHE_HOME": "", "HOME": "{file}"}])
    def test_a_cache_that_cannot_be_written_is_the_build_folder(
        self, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        (tmp_path / "file").touch()
        values = {name: value.format(file=tmp_path / "file") for name, value in environment.items()}
        stub = tmp_path / "pip"  # stands for pip: puts a file where it should, of the wrong hash
        stub.write_text('#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\necho x > "$2/pyfhel-3.5.0.tar.gz"\n')
        stub.chmod(0o755)
        script = f'set(CMAKE_BINARY_DIR "{tmp_path}/b")\nset(Python_EXECUTABLE "{stub}")\nhesplit_seal_archive(path)'
        done = run_recipe(script, tmp_path, HESPLIT_CACHE_DIR="", **values)
        assert "stays in the build folder" in done.stdout
        assert f"{tmp_path}/b/seal-cache/staging" in done.stderr.replace("\n", "").replace(" ", "")
        assert "Wrong hash" in done.stderr


STRANGE = ["name (1)", "it's", "100%, $x & #2", "v [2] *", "köln 文", "a=b:c~"]


def small_project(folder: Path) -> Path:
    """A module of two files, made with the functions that make ours."""
    shutil.copytree(REPOSITORY / "cmake", folder / "cmake")
    (folder / "cpp" / "part").mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\ninclude(cmake/compiler.cmake)\n"
        'hesplit_check_path("${CMAKE_SOURCE_DIR}")\nproject(small LANGUAGES NONE)\n'
        "hesplit_enable_languages()\nadd_subdirectory(cpp)\n"
    )
    (folder / "cpp" / "CMakeLists.txt").write_text(
        "hesplit_sources(sources part)\nadd_library(small MODULE ${sources})\nhesplit_hide_symbols(small)\n"
    )
    (folder / "cpp" / "part" / "a.cpp").write_text('int b();\nextern "C" int PyInit_small() { return b(); }\n')
    (folder / "cpp" / "part" / "b.cpp").write_text("int b() { return 1; }\n")
    return folder


class TestPaths:
    @pytest.mark.parametrize(
        ("name", "generator"),
        [
            *((name, "Ninja") for name in STRANGE),  # what pip uses
            *((name, "Unix Makefiles") for name in STRANGE if not set(name) & set("%:")),  # make has its own limits
        ],
    )
    def test_a_folder_may_have_a_strange_name(self, tmp_path: Path, name: str, generator: str) -> None:
        source = small_project(tmp_path / name / "src")
        build = source / "build"
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        tool("ninja" if generator == "Ninja" else "make")
        for command in (["-G", generator, "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release"], ["--build", build]):
            done = subprocess.run(
                [tool("cmake"), *command], capture_output=True, text=True, check=False, env=environment
            )
            assert done.returncode == 0, done.stdout + done.stderr
        module = next(build.rglob("libsmall.*"))
        listing = subprocess.run(
            [tool("nm"), "-D", "--defined-only", module], capture_output=True, text=True, check=True
        )
        assert [line.split()[-1] for line in listing.stdout.splitlines()] == ["PyInit_small"]
        whole = subprocess.run([tool("nm"), module], capture_output=True, text=True, check=False)
        assert "no symbols" in whole.stderr  # stripped

    @pytest.mark.parametrize(
        "name", ["a;b", 'say "x"', "a<b>", "x|y", "back\\slash", "$(pwd)", "${HOME}", "open [", "shut]"]
    )
    def test_a_name_that_cmake_cannot_take_is_refused_at_once(self, tmp_path: Path, name: str) -> None:
        script = f'include("{REPOSITORY}/cmake/compiler.cmake")\nhesplit_check_path([==[/home/{name}/src]==])'
        done = run_recipe(script, tmp_path)
        assert done.returncode != 0
        assert "hesplit_native cannot be built in" in done.stderr
        assert "another name" in done.stderr

    def test_the_whole_project_configures_and_links_by_valid_commands(self, tmp_path: Path) -> None:
        import pybind11

        archive = run_recipe('hesplit_seal_cache_dir(path)\nmessage("${path}")', tmp_path, HESPLIT_CACHE_DIR="")
        if not (Path(archive.stderr.strip()) / "pyfhel-3.5.0.tar.gz").is_file():
            pytest.skip("NO SEAL ARCHIVE in the build's cache: this machine has not built the package by itself")
        source = tmp_path / "it's a (1) [2], $x & #3" / "src"
        ignored = shutil.ignore_patterns(".*", "build", "tests", "docs", "benchmarks")
        shutil.copytree(REPOSITORY, source, ignore=ignored)
        tool("ninja")
        defined = [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
        done = subprocess.run(
            [tool("cmake"), "-G", "Ninja", "-S", source, "-B", source / "build", *defined],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stderr
        ninja = (source / "build" / "build.ninja").read_text()
        assert "_core" in ninja
        for line in re.findall(r"(?:PRE_LINK|POST_BUILD) = (.*)", ninja):
            assert subprocess.run(["sh", "-n", "-c", line.replace("$$", "$")], check=False).returncode == 0, line


def test_the_same_pythons_are_named_everywhere() -> None:
    settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', settings)
    assert classifiers
    wheels = re.search(r'^build = "(.*)"$', settings, re.MULTILINE)
    assert wheels is not None
    assert [f"cp{name.replace('.', '')}-*" for name in classifiers] == wheels[1].split()
    assert f'requires-python = ">={classifiers[0]}"' in settings
