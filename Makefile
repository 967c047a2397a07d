# Two commands on a fresh machine with Python 3.11+, make and git: `make demo` and `make test`.
# Where threads share their cores with others, waiting passively keeps torch many times faster than spinning.
export OMP_WAIT_POLICY ?= PASSIVE

PYTHON ?= python3
BIN := .venv/bin
COMPARED := "report.baselines=mean, laplacian"

.PHONY: demo app test test-all check dist docs figures clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/installed  ## set up, and fuse the bundled examples into out/
	$(BIN)/python infer.py configs/ivf.yaml sources.visible=examples/infrared_visible/visible \
	    sources.infrared=examples/infrared_visible/infrared out=out/infrared_visible save.weights=true $(COMPARED)
	$(BIN)/python infer.py configs/mef.yaml sources.under=examples/multi_exposure/under \
	    sources.over=examples/multi_exposure/over out=out/multi_exposure $(COMPARED)
	$(BIN)/python infer.py configs/mef.yaml sources.dark=examples/multi_exposure_stack/dark \
	    sources.middle=examples/multi_exposure_stack/middle sources.bright=examples/multi_exposure_stack/bright \
	    out=out/multi_exposure_stack $(COMPARED)
	$(BIN)/python infer.py configs/mff.yaml sources.near=examples/multi_focus/near \
	    sources.far=examples/multi_focus/far out=out/multi_focus $(COMPARED)
	@echo; echo "Fused pictures:"; ls out/*/*.png
	@echo; echo "Pages to look at them:"; ls out/*/report.html

app: .venv/installed-app  ## set up, and serve a page to try fusion in the browser, on 127.0.0.1
	$(BIN)/python -m dig2dig.app

test: .venv/installed-dev  ## set up, and run the fast tests
	$(BIN)/python -m pytest -m "not slow and not huge" -n logical --maxprocesses 4 --dist loadfile

test-all: .venv/installed-dev  ## set up, and run all tests but those of many gigabytes
	$(BIN)/python -m pytest -m "not huge"

dist: .venv/installed-dev  ## build the wheel, check it, and fuse with it in a fresh environment
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest -q tests/test_wheel.py

check: .venv/installed-dev docs  ## lint, formatting, types, and the documentation with all its links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/installed-dev  ## build the documentation into out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir out/site

figures: .venv/installed  ## make the figures of README.md and docs/tracking.md again
	$(BIN)/python -m docs.figures

clean:  ## remove the environment and what runs have left
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "dig2dig needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-app: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[app]'
	@touch $@ .venv/installed

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ .venv/installed .venv/installed-app
