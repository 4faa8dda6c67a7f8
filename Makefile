# `make train` and `make test` are all that a newcomer needs; both install what they miss into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NPROC ?= 2
ARGS ?=

.PHONY: train experiment test test-slurm check clean install install-dev

# ARGS="seed=1 train.epochs=20" changes configuration keys.
train: $(VENV)/.installed
	@$(PY) -m pipeline data demo data/digits
	$(PY) -m launch local configs/demo.yaml --nproc-per-node $(NPROC) $(ARGS)

# The paper's degradation experiment on the digits: some minutes; figure and tables in runs/degradation.
experiment: $(VENV)/.installed
	@$(PY) -m pipeline data demo data/digits
	$(PY) -m pipeline experiment configs/experiments/degradation.yaml --out runs/degradation $(ARGS)

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 3 --dist worksteal $(ARGS)

# Starts a SLURM of its own; says what is missing and installs nothing.
test-slurm: $(VENV)/.installed-dev
	$(PY) -m pytest tests/slurm -m slurm -v $(ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (6.8 GB; about two minutes on a fast connection)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) data/digits
