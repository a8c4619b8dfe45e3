# Every command of the project. `make help` lists them; everything is installed into .venv here and nowhere else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
EXPERIMENTS := single-example scoring-leak bn-vs-plain figure1 population-estimators model-solver solver-steps missing-update-ops \
  collected-update-ops control-dependencies conditional-updates checkpoint-variables training-vs-trainable conv-normalizer helper-variables keras-modes \
  test-batch-size numerics needless-bias layer-defaults old-calls higher-learning-rates small-batches ghost-batches recurrent \
  dropout deep-sigmoid

# Settings of the experiments: make bn-vs-plain MODE=full DATA=mnist SEED="0 1 2" STEPS=10000 OUTPUT=results FRESH=1
MODE   ?= quick
OUTPUT ?= results
ARGS    = --mode $(MODE) --output $(OUTPUT) $(if $(DATA),--data $(DATA)) $(if $(SEED),--seed $(SEED)) \
          $(if $(STEPS),--steps $(STEPS)) $(if $(FRESH),--fresh) $(if $(LOOP),--loop $(LOOP)) $(if $(THREADS),--threads $(THREADS))
ALL     = --output $(OUTPUT) $(if $(FRESH),--fresh)

.DEFAULT_GOAL := help
.PHONY: help install verbatim reproduce reproduce-quick report readmes reference restore-demo mend-demo audit-cost bench distributed \
  mnist eras test test-versions test-oldest lint format clean $(EXPERIMENTS)

help:  ## list the commands
	@echo 'make COMMAND [MODE=quick|full] [DATA=auto|mnist|digits] [SEED="0 1 2"] [STEPS=n] [OUTPUT=results] [FRESH=1] [LOOP=graph|feed] [THREADS=n]'
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-24s %s\n", $$1, $$2}'

# Stamps: the packages are installed anew only when the files that list them change.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bn_graph needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.txt
	@touch $@

# .installed-dev and .installed-bench: what the project needs, and the extra of that name in pyproject.toml.
$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) --editable '.[$*]'
	@touch $@

install: $(VENV)/.installed  ## make .venv and install what the project needs

# One target an experiment: make single-example runs experiments/single_example.py.
MODULE = $(subst -,_,$@)
# A module whose name starts with test_ would be a test's.
test-batch-size: MODULE = evaluation_batch_size
$(EXPERIMENTS): $(VENV)/.installed
	@$(RUN) experiments.$(MODULE) $(ARGS)

single-example:         ## the single-example prediction bug and its fix
scoring-leak:           ## a loop that scores its training graph on the test set
bn-vs-plain:            ## r2rt's two networks: accuracy, and what goes into their activations
figure1:                ## the paper's own network and its Figure 1
population-estimators:  ## exponential and simple averages, recalibration: accuracy against step
model-solver:           ## Model and Solver: MNIST with and without batch norm, 10 epochs
solver-steps:           ## Solver step by step: which statistics, which loss, how many steps an epoch has
missing-update-ops:     ## what a train op without its update ops leaves behind
collected-update-ops:   ## how UPDATE_OPS prints, and which of its entries a scope takes
control-dependencies:   ## 3 and 12, over hundreds of sessions
conditional-updates:    ## updates that leak out of a tf.cond, and updates that do not
checkpoint-variables:   ## saved four ways, restored three ways, each in a new process
training-vs-trainable:  ## the two flags, digit for digit, across five libraries
conv-normalizer:        ## the convolutional helper, its race, and the right order
helper-variables:       ## what the convolutional helper keeps, and the function it calls
keras-modes:            ## training, trainable and predict in legacy Keras and Keras 3
test-batch-size:        ## loss of both phases against the test batch's size
numerics:               ## identities, NaN of the log, dead ReLUs
needless-bias:          ## a bias before batch norm: its gradient, and where Adam walks it
layer-defaults:         ## signatures and defaults, from the live libraries
old-calls:              ## calls and idioms of old versions: gone, renamed, or working by luck
higher-learning-rates:  ## learning rate and batch size, with and without batch norm
small-batches:          ## batches of 1 to 64, mixed and of two classes: which remedy helps where
ghost-batches:          ## batches of 1,024 normalized whole, and in groups of 128, 64 and 16
dropout:                ## dropout with batch norm, without, and alone, at several rates
deep-sigmoid:           ## networks of sigmoids, two to eight layers deep, with batch norm and without
recurrent:              ## an LSTM with batch norm: statistics for each time step, beside shared ones

reproduce: $(VENV)/.installed  ## every experiment in full, on MNIST; goes on where it was stopped
	@$(RUN) experiments.machinery.reproduce --mode full $(ALL)

reproduce-quick: $(VENV)/.installed  ## every experiment in quick mode
	@$(RUN) experiments.machinery.reproduce --mode quick $(ALL)

report: $(VENV)/.installed  ## results/report.html and results/claims.json from the results there are
	@$(RUN) experiments.machinery.report --output $(OUTPUT)

readmes: $(VENV)/.installed  ## bring the tables in the READMEs up to date
	@$(RUN) experiments.machinery.report --update-readme

reference: $(VENV)/.installed  ## take the full results as the committed reference, and bring README up to date
	@$(RUN) experiments.machinery.report --output $(OUTPUT) --update-reference

# IMAGES: places in the test set, as in make restore-demo IMAGES="0 7 42"
restore-demo: $(VENV)/.installed  ## predict images from a checkpoint of single-example, rightly and wrongly restored
	@$(RUN) experiments.demos.restore_demo --output $(OUTPUT) $(if $(IMAGES),--images $(IMAGES)) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

mend-demo: $(VENV)/.installed  ## break a checkpoint, audit it, recalibrate it: accuracy before and after
	@$(RUN) experiments.demos.repaired_checkpoint --output $(OUTPUT) $(if $(DATA),--data $(DATA)) $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED))

# FULL=1: a graph of a million nodes too
audit-cost: $(VENV)/.installed  ## seconds and memory of the audit, beside a mere parse and import_meta_graph
	@$(RUN) experiments.benchmarks.audit_cost --output $(OUTPUT) $(if $(FULL),--full)

# QUICK=1: a share of it. README=1: commit the result. The peers are installed where they can be; what is not there is left out, with a note.
bench: $(VENV)/.installed  ## time steps, layers and workers beside Keras, PyTorch and JAX, and their limits (QUICK=1, THREADS=n)
	@$(MAKE) --no-print-directory $(VENV)/.installed-bench || echo "bench: the peers could not be installed; going on with what is there" >&2
	@$(RUN) experiments.benchmarks.bench --output $(OUTPUT) $(if $(QUICK),--quick) $(if $(THREADS),--threads $(THREADS)) $(if $(README),--update-readme)

# WORKERS: local processes, as in make distributed WORKERS=2 DATA=mnist STEPS=1000
distributed: $(VENV)/.installed  ## several workers' batch statistics and training, against one process; what two gain
	@$(RUN) experiments.demos.distributed --output $(OUTPUT) $(if $(WORKERS),--workers $(WORKERS)) $(if $(DATA),--data $(DATA)) \
	  $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED)) $(if $(FRESH),--fresh)
	@$(RUN) experiments.benchmarks.several_workers --output $(OUTPUT)

mnist: $(VENV)/.installed  ## download MNIST into MNIST_data (needs a network)
	@$(RUN) experiments.machinery.fetch_mnist

# PYTHON36, PYTHON37: interpreters, where they are neither on the PATH nor in pyenv
eras: $(VENV)/.installed  ## environments of TensorFlow 1.0.1 to 1.15.5 in .eras, for comparisons (Python 3.6 and 3.7)
	@$(RUN) experiments.machinery.eras

# DOCUMENTS: folder of the five text files. PROGRAMS="r2rt flags/as-printed", VERSIONS="1.15.5 2.21": only these
DOCUMENTS ?= documents
verbatim: $(VENV)/.installed  ## the documents' own programs, as they stand, in six TensorFlows (DOCUMENTS=folder; make eras first)
	@$(RUN) experiments.machinery.verbatim --documents $(DOCUMENTS) --output $(OUTPUT) $(if $(PROGRAMS),--program $(PROGRAMS)) \
	  $(if $(VERSIONS),--version $(VERSIONS)) $(if $(SEED),--seed $(SEED)) $(if $(FRESH),--fresh)

# In as many processes as there are cores; `pytest` alone runs them in one.
test: lint  ## lint and tests; those that train on MNIST run where MNIST_DIR is set
	@$(RUN) pytest -n auto --dist worksteal

# VERSIONS="2.12.1 2.15.1": only these; README=1: write the outcomes into README's table
test-versions: $(VENV)/.installed  ## the library's tests with TensorFlow 2.12, 2.15, 2.16, 2.18 and 2.21 (Python 3.10 to 3.13)
	@$(RUN) tests.versions $(VERSIONS) $(if $(README),--update-readme)

test-oldest: $(VENV)/.installed  ## the core tests with the oldest TensorFlow, 2.12 (Python 3.10 or 3.11; a note where neither is)
	@$(RUN) tests.versions --core

lint: $(VENV)/.installed-dev  ## check style, formatting, and the types of the public names
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## repair style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove results and caches; keep .venv and MNIST_data
	rm -rf $(OUTPUT) .pytest_cache .ruff_cache .hypothesis
