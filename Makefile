# Every target does its own set-up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-notebooks test-processes test-faults test-gpu test-wheel test-oldest demo-locked coverage mutants lint format notebooks figures clean

setup: $(READY)

$(READY): pyproject.toml embedded.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "road-interp needs Python 3.10 to 3.13; choose one with make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement embedded.txt
	@touch $@

demo: setup
	$(BIN)/road-interp demo

# The same in an environment of its own, from releases pinned by their hashes.
LOCKED := build/locked
demo-locked:
	$(PYTHON) -m venv $(LOCKED)
	$(LOCKED)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCKED)/bin/uv pip install --quiet --python $(LOCKED)/bin/python --require-hashes --requirement demo.lock
	$(LOCKED)/bin/uv pip install --quiet --python $(LOCKED)/bin/python --no-deps .
	$(LOCKED)/bin/road-interp demo

# Pins stay what they are while they fit; delete the file to take the newest.
demo.lock: pyproject.toml | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra demo --generate-hashes --no-annotate \
		--custom-compile-command "make demo.lock" --output-file $@ pyproject.toml

QUICKLY := not notebook and not processes and not faults
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "$(QUICKLY)"

# Every notebook from top to bottom: minutes, so they have a target of their own.
test-notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --maxschedchunk 1 -m notebook

# What torchrun starts: training and measuring by two processes, beside one.
test-processes: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m processes

# Processes that are killed at random steps, twenty times, and files that find no room: about three minutes.
test-faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

# What needs a CUDA device: skipped, with that reason, where there is none.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# The oldest releases that pyproject.toml admits, as uv resolves them: gigabytes to download and an environment of their own.
OLDEST := build/oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement embedded.txt
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "$(QUICKLY)"

# Lines of the package that `make test` runs; what other processes run is not counted.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "$(QUICKLY)" \
		--cov road_interp --cov-report term-missing:skip-covered

# Small changes to the mathematics, one at a time: how many of them the tests notice. Twenty minutes of one core.
mutants: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

# The wheel in an empty environment, away from the sources: nothing is missing, and the demo runs.
EMPTY := build/empty
test-wheel: setup
	rm -rf dist $(EMPTY)
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[demo]"
	$(EMPTY)/bin/python -m pip check
	cd $(EMPTY) && bin/python -c "import road_interp, pathlib; assert (pathlib.Path(road_interp.__file__).parent / 'py.typed').is_file()"
	cd $(EMPTY) && bin/road-interp demo --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run the notebooks in place and keep their outputs.
notebooks: setup
	for notebook in notebooks/*.ipynb; do $(BIN)/jupyter-execute --inplace $$notebook || exit 1; done

# Figures of the embedded models, and a page that shows them. What takes minutes is measured, one seed of it; what takes hours is drawn
# from what was measured, in docs/. QUICK=1 measures for a moment only, in a folder of its own, since those numbers mean nothing.
DRAWN := figures$(if $(QUICK),/quick)
MEASURED := angles disentangle $(if $(QUICK),ablation drift interference)
KEPT := $(filter-out $(addprefix %/,$(MEASURED)),studies/ablation studies/drift studies/capacity heads/heads heads/interference) \
	studies/disentangle-rotten-tomatoes-before-norm composition/composition composition/strength throughput
FIGURE := OMP_NUM_THREADS=1 $(BIN)/python analyses
figures: setup
	@$(MAKE) --jobs 2 $(addprefix measure/,$(MEASURED)) $(addprefix redraw/,$(KEPT)) redraw/interchange redraw/smollm2
	$(FIGURE)/index.py $(DRAWN) $(DRAWN)/smollm2

# Parts of `figures`. Where they are measured, these two share runs that the first trains.
measure/ablation measure/drift: measure/angles

measure/%:
	$(FIGURE)/$*.py $(if $(QUICK),--quick,--seeds 0) --out $(DRAWN)

redraw/interchange:
	$(FIGURE)/interchange.py --redraw docs/interchange --out $(DRAWN)

redraw/smollm2:
	$(FIGURE)/angles.py --redraw docs/studies/smollm2 --out $(DRAWN)/smollm2
	$(FIGURE)/ablation.py --redraw docs/studies/smollm2/ablation.json --out $(DRAWN)/smollm2

redraw/%:
	$(FIGURE)/$(firstword $(subst -, ,$(notdir $*))).py --redraw docs/$*.json --out $(DRAWN)

clean:
	rm -rf mutants .coverage .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis dist build
