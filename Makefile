# Two commands for a newcomer: `make demo` and `make test`. Each makes its environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo

.PHONY: demo test lint peers bench-step bench-solvers bench-hessian bench-correctness clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "torch_qsgd needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,physical,quantum]"
	@touch $@

demo: $(READY)  ## train a pruned residual network on real images and compare (about a minute)
	$(BIN)/python -m torch_qsgd train --data digits --compare --output $(DEMO) \
		--width 16 --depth 8 --activation silu --lr 0.02 --warmup 200 --window 40 --windows 8

test: $(READY)  ## run the whole test suite
	$(BIN)/python -m pytest -q

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-step: $(READY)  ## cost of one window step, in gradient evaluations
	$(BIN)/python benchmarks/step_cost.py

peers: $(READY)  ## the packages that benchmarks compare with
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[peers]"

bench-solvers: peers  ## time and error of each linear solver, beside SciPy and QSP packages
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/solvers.py --output runs/solvers.json

bench-hessian: peers  ## cost, memory and accuracy of Hessian spectra, beside other libraries
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hessian.py --output runs/hessian.json

bench-correctness: peers  ## whose Hessian-vector products are right, layer by layer
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/correctness.py --output runs/correctness.json

clean:  ## remove the environment and what runs have left
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
