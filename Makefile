# make demo: the whole study at smoke scale.  make test: everything CI checks.  make fix: format.
# make docs: the pages that are made from the code.  make package: the wheel, away from the checkout.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test package fix docs clean

demo: .venv/installed
	$(BIN)/dsa-sandbox run --preset smoke --count 4 --singles 1 --home runs/demo

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy
	$(MAKE) --no-print-directory package
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

package: .venv/installed-dev
	bash tests/package.sh $(BIN)/python

fix: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv runs/demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and alone: with a constraint pip takes the pinned build wherever it finds one
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@
