# make demo: the main job on the drawn faces.  make test: everything CI runs.  Both make their own .venv.
PYTHON ?= python3
BIN := .venv/bin
# threads that spin while they wait crawl on a shared machine
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test soak export

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
	$(BIN)/python -m pytest -m "not soak"

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

export: .venv/installed
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
