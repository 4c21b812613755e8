# Requires Python 3.11 and make. `make serve` and `make test` set up everything else.

PYTHON ?= python3
BIN := .venv/bin
MANIFESTS := pyproject.toml models/pyproject.toml service/pyproject.toml clients/pyproject.toml
# Compiled when the package is installed.
KERNELS := models/hatch_build.py $(wildcard models/alarm_models/modeling/kernels/*.cpp) \
	$(wildcard models/alarm_models/modeling/kernels/*.h)

PRODUCT := --editable ./models --editable './service[study]' --editable ./clients
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: install serve test lint docs wheels audit peers

install: .venv/installed

# Only what the server needs: some test dependencies would be imported at each start.
.venv/product: $(MANIFESTS) $(KERNELS) constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) $(PRODUCT)
	touch $@

.venv/installed: $(MANIFESTS) $(KERNELS) constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) $(PRODUCT) --editable '.[dev]'
	touch $@ .venv/product

serve: .venv/product
	$(BIN)/alarm serve

# Two workers; tests of one file run in sequence. One torch thread each. Bytecode is kept, also of
# tests, for the processes that tests start and the next run.
test: install
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

# Write the tables of docs/ that the code knows: kinds, rules, constants, routes, metrics.
docs: install
	$(BIN)/python docs/generate.py

# Build three wheels in dist/, that of the models with its compiled kernels, and test the client's in an
# environment with only its dependencies.
wheels: install
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist \
		./models ./service ./clients
	[ "$$(uname -sm)" != "Linux x86_64" ] || \
		$(PYTHON) -m zipfile --list dist/alarm_models-*.whl | grep kernels_avx2.so > /dev/null
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/alarm_client-*.whl
	cd dist && venv/bin/python -m alarm_client.trainers
	rm -r dist/venv

# Requires network access: looks up known vulnerabilities of pinned versions.
audit: install
	$(BIN)/python -m pip install --quiet 'pip-audit>=2.9'
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# Requires network access: whether the packages of the benchmarks' peers still fit together.
peers: install
	$(BIN)/python benchmarks/environments.py --resolve
