# make demo: the main job on the drawn faces.  make test: everything CI runs.  Both make their own .venv.
# make nightly: more of the same, for changes to what it tries.  make soak: two hundred runs.  make package: built, installed, run.
# make study MINUTES=60 DATA=path/to/FERPlus: the next runs of results/studies, beside other work; it goes on when called again.
# make gpu-study MINUTES=9 DATA=path/to/FERPlus: results/gpu-pretraining.yaml, then gpu-study.yaml, on one GPU, as far as it comes in that time.
PYTHON ?= python3
BIN := .venv/bin
# two processes of one thread each; a file stays in one of them, for the sake of its fixtures
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
# threads that spin while they wait crawl on a shared machine
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test nightly soak package browser site export study gpu-study gpu-bench peers

.venv/installed: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/fer-bench run --method dtm --preset quick

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/nbdev-test --n-workers 2
	$(PYTEST) -m "not nightly and not soak"

# what `make test` tries a few of, and ten times as many random examples, other ones each time
nightly: .venv/installed
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -m "not soak"

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

# built, then installed in a fresh environment of $(PYTHON) outside of this folder, and run there
package: .venv/installed
	PYTHON=$(PYTHON) .ci/package

# Chromium, with which `make nightly` runs the tour in a real JupyterLab
browser: .venv/installed
	$(BIN)/python -m playwright install chromium

# the notebooks, README and results as pages with search, to read offline; a broken link stops it
site: .venv/installed
	$(BIN)/python -m sphinx -E -W --keep-going -q -c nbs/site -d build/site-cache . build/site
	@echo "The site: build/site/index.html"

export: .venv/installed
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

# with the .venv where there is one, else with PYTHON and what it has installed; exit code 3 only says that runs are left
MINUTES ?= 9
DATA ?= $(or $(FER_BENCH_DATA),../shared/data)/ferplus.tar.xz/FERPlus
RESULTS ?= results/own
RUN_CLI = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m fer_bench.cli

# the studies in an order of worth, at low priority, a run a core (or WORKERS of them); their records are there to be committed
STUDIES ?= $(sort $(wildcard results/studies/*.yaml))
study: MINUTES := 60
study: RESULTS := results
study:
	nice -n 15 $(RUN_CLI) sweep $(STUDIES) --set data_root=$(DATA) --results-dir $(RESULTS) --minutes $(MINUTES) \
		--retry-failed $(if $(WORKERS),--workers $(WORKERS)) || test $$? -eq 3

GPU_STUDIES ?= results/gpu-pretraining.yaml results/gpu-study.yaml
gpu-study:
	$(RUN_CLI) sweep $(GPU_STUDIES) \
		--set data_root=$(DATA) --results-dir $(RESULTS) --minutes $(MINUTES) || test $$? -eq 3

# models that packages ship, fetched by pip into build/peers and judged on FERPlus: the table beside ours
peers:
	$(RUN_CLI) peers --dataset ferplus --data-root $(DATA) \
		--results-dir $(RESULTS) --page $(RESULTS)/peers.md

# how fast a GPU trains, beside the passes alone and the usual way: rows for results/own/throughput
gpu-bench:
	$(RUN_CLI) bench --device cuda --image-sizes 112 --faces 512 --changes
	$(RUN_CLI) bench --device cuda --methods supervised,dtm,simfle --backbone resnet50 --image-sizes 224 --faces 256 --changes
	$(RUN_CLI) bench --device cuda --methods supervised --backbone resnet50 --image-sizes 224 --faces 512 --compile
