# Every target sets up its environment first, so each works on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Every process would compile all of torch's and transformers' modules anew: 12 of the 17 seconds of a short command.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: audit sbom test-bits test-newest setup demo test test-slow test-training test-soak test-docs \
	test-training-and-docs test-pages test-interop docs test-notebooks \
	test-processes test-faults test-compiled test-gpu bench-gpu test-wheel test-oldest demo-locked coverage mutants lint \
	format notebooks figures results check-results models clean

setup: $(READY)

$(READY): pyproject.toml embedded.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "road-interp needs Python 3.10 to 3.13; choose one with make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev,serve]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes --requirement embedded.txt
	@touch $@

demo: setup
	$(BIN)/road-interp demo

# The demo in its own environment, from releases pinned by hash.
LOCKED := build/locked
demo-locked:
	$(PYTHON) -m venv $(LOCKED)
	$(LOCKED)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCKED)/bin/uv pip install --quiet --python $(LOCKED)/bin/python --require-hashes --requirement demo.lock
	$(LOCKED)/bin/uv pip install --quiet --python $(LOCKED)/bin/python --no-deps .
	$(LOCKED)/bin/road-interp demo

# Existing pins stay where they are compatible; delete the file for the newest releases.
demo.lock: pyproject.toml | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra demo --generate-hashes --no-annotate \
		--custom-compile-command "make demo.lock" --output-file $@ pyproject.toml

QUICKLY := not slow and not soak and not bits and not docs and not interop and not notebook and not processes and not \
	faults and not compiled and not training and not pages
TESTED := ($(QUICKLY)) or (training and not slow)
# The files in their order, as otherwise those with few tests come last, and the longest test is among them.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "$(QUICKLY)"

# Tests that take long: real models, compilers, and benchmarks of all methods.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m slow

# Trainings of tiny models.
test-training: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "training and not slow"

# The code of every page of the manual, and the texts of all studies.
test-docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --maxschedchunk 1 -m docs

# Both of these in one run, as imports and collection take half a minute; the pages are one file, and about half of the time.
test-training-and-docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "docs or (training and not slow)"

# The manual, as build/docs/index.html. Warnings are errors.
docs: setup
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# Every page of the manual in Chromium, at two widths and in both themes.
test-pages: docs
	$(BIN)/python -m pytest -m pages

# 2,000 random programs against dense matrices, and 100,000 damaged files, fewer of GGUF, and half
# an hour each of generation and of the server while adapters come and go.
SOAKED := tests/test_random_programs.py tests/test_hostile_files.py tests/test_endurance.py
test-soak: setup
	PROGRAMS=2000 FILES=110000 MINUTES=30 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -rP $(SOAKED)

# Commands and studies, each in two processes: the same numbers to the bit. Takes an hour.
test-bits: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m bits

# pyreft, nnsight, lm-evaluation-harness and tensorboard, in an environment of their own. Downloads gigabytes. pyreft requires
# transformers 4.45.1, but works with the newest.
INTEROP := build/interop
test-interop:
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(INTEROP)/bin/uv pip install --quiet --python $(INTEROP)/bin/python --editable '.[peft,interop]' pytest
	$(INTEROP)/bin/uv pip install --quiet --python $(INTEROP)/bin/python --no-deps pyreft==0.1.0
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement embedded.txt
	OMP_NUM_THREADS=1 $(INTEROP)/bin/python -m pytest -p no:cacheprovider -o addopts= -q -m interop tests/test_interop.py

# Every notebook, from top to bottom. Takes minutes.
test-notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --maxschedchunk 1 -m notebook

# Training and measuring with torchrun: two processes against one.
test-processes: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m processes

# Processes killed at random steps, twenty times, and full disks. Takes about three minutes.
test-faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults

# Compilation with inductor, which takes minutes and a C++ compiler.
test-compiled: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m compiled

# Tests that need a CUDA device; skipped without one.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# The tests with the oldest releases that pyproject.toml admits, in their own environment, which has no server. Downloads gigabytes.
OLDEST := build/oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement embedded.txt
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "$(TESTED)" \
		--doctest-ignore-import-errors

# The same with the newest releases, also those before their release. The server, which needs transformers 5.24, is left out.
NEWEST := build/newest
test-newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(NEWEST)/bin/uv pip install --quiet --python $(NEWEST)/bin/python --prerelease allow --upgrade --editable '.[dev]'
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement embedded.txt
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile -m "$(TESTED)" \
		--doctest-ignore-import-errors

# Known weaknesses of the releases in demo.lock. Needs PyPI's pages of vulnerabilities; what cannot be looked up is a failure.
RELEASE := build/release
audit:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(RELEASE)/bin/pip-audit --strict --require-hashes --disable-pip --requirement demo.lock

# The components of the wheel in an environment of its own, with their licences: dist/road-interp.cdx.json (CycloneDX).
sbom: test-wheel
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	$(RELEASE)/bin/cyclonedx-py environment --output-file dist/road-interp.cdx.json $(EMPTY)/bin/python

# Line coverage of `make test` and `make test-training`, without subprocesses.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "$(TESTED)" \
		--cov road_interp --cov-report term-missing:skip-covered

# Mutation testing of rotation/, adapters/, and the core of models/ and sites/: some 3,900 mutants, which take hours.
# `mutmut run NAME ...` runs some.
mutants: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

# The benchmark in bf16 on a CUDA device: 1 to 64 requests, 16 to 2,048 tokens, compiled and in CUDA graphs.
bench-gpu: setup
	$(BIN)/road-interp bench throughput-gpu --device cuda --out figures/gpu

# The wheel in an empty environment: imports, and the demo.
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
	$(BIN)/lint-imports
	$(BIN)/codespell --skip 'road_interp/example_runs/*' *.md docs road_interp analyses interventions results/PROTOCOLS.md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run the notebooks and store their outputs.
notebooks: setup
	for notebook in notebooks/*.ipynb; do $(BIN)/jupyter-execute --inplace $$notebook || exit 1; done
	$(BIN)/python docs/small_images.py notebooks/*.ipynb

# Figures of all studies from results/, on one page; docs/figures gets those of the documentation. QUICK=1 measures five studies with tiny
# settings instead, in separate folders: those numbers mean nothing.
QUICKLY_MEASURED := angles disentangle ablation drift interference
SHOWN := ablation angles composition parameter-share-rotten-tomatoes strength throughput variables-smollm2-number-gender
figures: setup
ifdef QUICK
	for study in $(QUICKLY_MEASURED); do $(BIN)/road-interp study $$study --quick --out figures/quick || exit 1; done
	$(BIN)/road-interp study --redraw --quick --out figures/quick
else
	$(BIN)/road-interp study --redraw --out figures
	cp $(SHOWN:%=figures/%.png) docs/figures
	$(BIN)/python docs/small_images.py docs/figures/*.png
	$(BIN)/python docs/drawings.py docs/figures/concepts
endif

# Check that the numbers of README and docs/ are those of results/.
check-results: setup
	$(BIN)/python docs/write_numbers.py

# Measure what results/ lacks. All of it takes days on two cores; every piece is stored when it is done.
results: setup
	for study in $$($(BIN)/road-interp study --list --json | \
		$(BIN)/python -c 'import json, sys; print(*(each["name"] for each in json.load(sys.stdin)["studies"]))'); \
		do $(BIN)/road-interp study $$study || exit 1; done

# Two larger models for experiments: MPNet, and Gemma-3-270M whose terms have to be accepted (ACCEPT_GEMMA=1). About 1.2 GB on disk.
models: setup
	$(BIN)/road-interp models

clean:
	rm -rf mutants .coverage .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis dist build
