# Every command of the project. `make help` lists them; everything is installed into .venv here and nowhere else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m

# Settings of the experiments: make single-example DATA=mnist SEED="0 1 2" STEPS=10000 OUTPUT=results
DATA   ?= auto
SEED   ?= 0
OUTPUT ?= results
ARGS    = --data $(DATA) --seed $(SEED) --output $(OUTPUT) $(if $(STEPS),--steps $(STEPS)) $(if $(FRESH),--fresh)

.DEFAULT_GOAL := help
.PHONY: help install single-example mnist test lint format clean

help:  ## list the commands
	@echo "make COMMAND [DATA=auto|mnist|digits] [SEED=\"0 1 2\"] [STEPS=n] [OUTPUT=results] [FRESH=1]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

# Stamps: the packages are installed anew only when a requirements file changes.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bn_graph needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(VENV)/.installed  ## make .venv and install what the project needs

single-example: $(VENV)/.installed  ## the single-example prediction bug and its fix
	@$(RUN) experiments.single_example $(ARGS)

mnist: $(VENV)/.installed  ## download MNIST into MNIST_data (needs a network)
	@$(RUN) experiments.fetch_mnist

test: lint  ## lint and tests; those that train on MNIST run where MNIST_DIR is set
	@$(RUN) pytest

lint: $(VENV)/.installed-dev  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

format: $(VENV)/.installed-dev  ## mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove results and caches; keep .venv and MNIST_data
	rm -rf $(OUTPUT) .pytest_cache .ruff_cache .hypothesis
