# `make serve` and `make test` are all a new machine needs: Python 3.11 and make.

PYTHON ?= python3
BIN := .venv/bin
MANIFESTS := pyproject.toml models/pyproject.toml service/pyproject.toml clients/pyproject.toml

.PHONY: install serve test lint audit

install: .venv/installed

.venv/installed: $(MANIFESTS) constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable ./models --editable './service[study]' --editable ./clients --editable '.[dev]'
	touch $@

serve: install
	$(BIN)/alarm serve

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

# Needs a network: asks whether a pinned version has a known vulnerability.
audit: install
	$(BIN)/python -m pip install --quiet 'pip-audit>=2.9'
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt
