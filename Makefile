# Two commands are enough on a fresh clone: `make demo` and `make test`. Each sets up what it needs and is quick after that.
#
# Needed: Python 3.10+ with venv and a C++20 compiler. CUDA is built as well where nvcc is on PATH.
#   make demo PYTHON=python3.12     another Python           PYFLOWCORE_CUDA=OFF make build     without CUDA
#   make -B build                   build again from the same environment; `make clean` forgets it
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
TOOLS := $(VENV)/.pyflowcore-tools
BUILT := $(VENV)/.pyflowcore-built
NATIVE := CMakeLists.txt $(shell find csrc -type f)
CPP := $(filter %.hpp %.h %.cpp %.cu %.cuh,$(NATIVE) $(wildcard benchmarks/*.cpp python_tests/*.cpp))
PYTHON_FOLDERS := $(wildcard pyflowcore python_tests benchmarks tools)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test build tools format lint lint-cpp lint-format lint-rules types clean
help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

demo: $(BUILT)
	$(BIN)/pyflowcore demo

# A process for each core, up to eight; a file stays whole, so that what it shares is made once.
test: $(BUILT)
	$(BIN)/python -m pytest python_tests -q -n auto --maxprocesses 8 --dist loadfile

build: $(BUILT)
tools: $(TOOLS)

# The pinned torch comes first and alone: a looser request would pull in another one, and an editable build that is not
# isolated finds the headers of the torch it will run with.
$(TOOLS): constraints.txt pyproject.toml tools/check_machine.py
	@$(PYTHON) tools/check_machine.py
	@echo "Setting up $(VENV): the first time this downloads torch and the build tools"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -qq --constraint constraints.txt torch numpy
	$(PIP) install -qq --constraint constraints.txt cmake ninja pybind11 scikit-build-core clang-format ruff mypy
	@touch $@

$(BUILT): $(TOOLS) $(NATIVE)
	@echo "Building pyflowcore"
	$(PIP) install -qq --constraint constraints.txt --no-build-isolation --editable '.[demo,dev]'
	@touch $@

format: $(TOOLS)
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff format $(PYTHON_FOLDERS)
	$(BIN)/ruff check --fix $(PYTHON_FOLDERS)

# `make -k lint` goes on after the first of the three that fails.
lint: lint-cpp lint-format lint-rules
lint-cpp: $(TOOLS)
	@$(BIN)/clang-format --dry-run -Werror --ferror-limit=5 $(CPP) || { echo 'make format mends this'; exit 1; }
lint-format: $(TOOLS)
	@$(BIN)/ruff format --check --quiet $(PYTHON_FOLDERS) || { echo 'make format mends this'; exit 1; }
lint-rules: $(TOOLS)
	@$(BIN)/ruff check --output-format concise $(PYTHON_FOLDERS)

types: $(BUILT)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist wheelhouse
