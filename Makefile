# A new machine has python3, pip, venv and make. Nothing is installed twice: .venv/.installed is newer than what it
# was made from.
PYTHON ?= python3
# torch comes first and alone. Where pip's default build brings CUDA and the machine has no GPU, name PyTorch's CPU
# index (see CONTRIBUTING.md): make demo TORCH_OPTIONS='--index-url URL'
TORCH_OPTIONS ?=
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true
# mkdocs-material advertises its successor at every build.
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo test test-all test-faults check bench docs wheel clean

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH_OPTIONS) torch
	$(PIP) --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/polydistill demo --output demo-run

# Two processes of one thread each: most of what tests wait for is imports.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
test test-all test-faults: export OMP_NUM_THREADS ?= 1

test: .venv/.installed
	$(PYTEST)

test-all: .venv/.installed
	$(PYTEST) -m ''

# A hundred kills at random moments, flipped bits in every kind of file, thousands of generated inputs, disks that fill up, files that vanish.
test-faults: export POLYDISTILL_FLIPS = 50
test-faults: export POLYDISTILL_FUZZ = 300
test-faults: .venv/.installed
	$(BIN)/python -m pytest -m '' tests/faults/test_bit_flips.py tests/faults/test_fuzz.py tests/faults/test_random_kills.py \
		tests/faults/test_hostile_folder.py tests/faults/test_fuzz_damage.py tests/faults/test_fuzz_input.py tests/faults/test_fuzz_names.py

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/import_graph.py > /dev/null
	$(BIN)/deptry src
	$(BIN)/python scripts/recipe_reference.py --check
	$(BIN)/mkdocs --quiet build

bench: .venv/.installed
	$(PIP) --editable '.[bench]'
	$(BIN)/python -m benchmarks all

docs: .venv/.installed
	$(BIN)/python scripts/recipe_reference.py
	$(BIN)/mkdocs --quiet build
	@echo site/index.html

# The wheel as users get it: an environment without this repository, and a whole merge there. Leaves dist/.
wheel: .venv/.installed
	rm -rf dist
	$(BIN)/python -m build
	bare=$$(mktemp -d) && trap "rm -rf $$bare" EXIT && $(PYTHON) -m venv $$bare/.venv && \
		pip="$$bare/.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt" && \
		$$pip $(TORCH_OPTIONS) torch && $$pip dist/*.whl && \
		cd $$bare && .venv/bin/polydistill --version && .venv/bin/polydistill demo --quick

clean:
	rm -rf .venv dist site demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
