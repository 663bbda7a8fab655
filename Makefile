# make demo: encodes the sample clips with the packaged model.
# make test: lint, types, import rules and the quick tests, in about five minutes; for each commit.
# make docs: the guides and the reference as web pages, in build/docs.
# make test-slow: the other tests: processes, kills, full-size models, scripts from end to end.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv takes a third of pip's time; for torch alone it does not choose the build without CUDA.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile --constraint constraints.txt
UV := $(BIN)/python -m uv pip install --python $(BIN)/python --quiet --constraint constraints.txt

.PHONY: demo test test-quick test-slow lint docs format

demo: $(VENV)/.demo
	$(BIN)/daisy-jax encode daisy_jax/samples/*.flac

test: $(VENV)/.test
	$(MAKE) --jobs 2 lint test-quick

test-quick: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow -n 3  # on two cores: many wait for a process

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.test
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -c docs . build/docs
	@echo "build/docs/index.html"

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV); a minute or two"
	$(PIP) uv
	$(UV) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0 uv
	$(UV) --editable '.[test]'
	touch $@ $(VENV)/.demo
