# Two commands for a fresh machine with Python >= 3.10 and a C++ compiler:
#   make demo    virtual environment, install, encrypted training on synthetic heartbeats
#   make test    the same environment, then linters, type checker and every test

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Passed to `pip install`, e.g. PIP_FLAGS="-C cmake.define.HESPLIT_SEAL_SOURCE_DIR=/path/to/SEAL"
PIP_FLAGS ?=
PYTEST_FLAGS ?=
DEMO_OUTPUT ?= demo-output

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(CONSTRAINTS) $(shell find cmake cpp python third_party \
	-type f -not -name '*.so' -not -name '*.pyc')
CPP_FILES = $(shell find cpp -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint format install clean

demo: $(VENV)/installed
	$(BIN)/hesplit-native train --dataset synthetic --protocol splitways \
		--epochs 2 --output $(DEMO_OUTPUT)

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy

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
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -C cmake.define.HESPLIT_TESTING=ON $(PIP_FLAGS) '.[test]'
	touch $@ $(VENV)/installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hesplit_native needs Python >= 3.10; name one: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build dist $(VENV) $(DEMO_OUTPUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis
