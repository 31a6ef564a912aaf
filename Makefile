PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all check faults format bench docs clean

# torch is installed first and pinned, so that the CPU build of constraints.txt is taken.
$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[torch,fast,jax,sklearn,plots,postgres,objects]"
	$(BIN)/pip install --quiet -c constraints.txt --group dev
	touch $(STAMP)

demo: $(STAMP)  ## install, then learn handwritten digits from a stream of corrections
	$(BIN)/bayesmlp demo

test: $(STAMP)  ## the test suite, without the long tests
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: $(STAMP)  ## the long tests too
	$(BIN)/pytest -n 2 --dist loadfile

check: $(STAMP)  ## lint, format, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

faults: $(STAMP)  ## the fault tests at full size; hours
	BAYESMLP_FLIPS=20000 BAYESMLP_HOSTILE=100000 BAYESMLP_DISK_STEP=1 BAYESMLP_CUTS=2000 BAYESMLP_KILLS=2000 \
	BAYESMLP_WRITERS_EVENTS=10000 BAYESMLP_SEEDS=10000 BAYESMLP_SERVER_CUTS=20 BAYESMLP_EXAMPLES=100 \
	$(BIN)/pytest -s tests/faults

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## all benchmarks, quick sizes; run a file itself for the full ones
	$(BIN)/python benchmarks/online_update.py --quick
	$(BIN)/python benchmarks/cost.py --quick
	$(BIN)/python benchmarks/digits_stream.py --quick
	$(BIN)/python benchmarks/online_exact.py --quick
	$(BIN)/python benchmarks/poison.py --quick
	$(BIN)/python benchmarks/long_run.py --quick
	$(BIN)/python benchmarks/store.py --quick
	$(BIN)/python benchmarks/sampling.py --quick
	$(BIN)/python benchmarks/reference.py --quick
	$(BIN)/python benchmarks/calibration.py --quick
	$(BIN)/python benchmarks/import_time.py

docs: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt --group docs
	$(BIN)/sphinx-build -W -q docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build demo-output .pytest_cache .mypy_cache .ruff_cache
