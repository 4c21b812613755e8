# `make serve` and `make test` are all a new machine needs: Python 3.11 and make.

PYTHON ?= python3
BIN := .venv/bin
MANIFESTS := pyproject.toml models/pyproject.toml service/pyproject.toml clients/pyproject.toml

.PHONY: install serve test lint

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
