# Thin over the console script `hmr-skel`; see README.md. `make` prints the targets.
PYTHON ?= python3
# Index that serves torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu; empty: the configured index.
TORCH_INDEX ?=
SUBSET ?= demo
OUT ?= outputs/$(SUBSET)
# Extras to install besides dev, separated by commas or spaces, e.g. make setup EXTRAS=biomech.
EXTRAS ?=
# Within a call of make's functions a plain comma would end the argument.
COMMA := ,
SPACE := $(subst ,, )
# Further options for hmr-skel, e.g. ARGS="--workers 2 --models /path/to/models".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: eval help view setup convert demo-images train verify status report readme-picture test lint clean build-tools default-body-asset test-rebuild chaos mutants osim-models check-versions

help:  ## print the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

setup: $(STAMP)  ## make the virtual environment .venv, with EXTRAS (the other targets make it when needed)
	$(if $(EXTRAS),$(BIN)/python -m tools.extras $(subst $(COMMA),$(SPACE),$(EXTRAS)))
	$(if $(EXTRAS),$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev$(COMMA)$(subst $(SPACE),$(COMMA),$(strip $(EXTRAS)))]')

# Rajagopal 2015 and the Pose2Sim models, which tests of the OpenSim exchange read where they are.
OSIM_MODELS ?= build/osim-models

osim-models: $(STAMP)  ## unpack freely licensed OpenSim models of others into OSIM_MODELS (downloads 130 MB)
	$(BIN)/python -m tools.osim_models $(OSIM_MODELS)

convert: $(STAMP)  ## convert SUBSET (default demo) to SKEL shards in OUT; rerun to resume
	$(BIN)/hmr-skel convert $(SUBSET) --out $(OUT) $(ARGS)

verify: $(STAMP)  ## re-read and check every shard of SUBSET
	$(BIN)/hmr-skel verify $(OUT) $(ARGS)

status: $(STAMP)  ## counts, failures, throughput and ETA of SUBSET
	$(BIN)/hmr-skel status $(OUT) $(ARGS)

report: $(STAMP)  ## write the HTML report of SUBSET
	$(BIN)/hmr-skel report $(OUT) $(ARGS)

view: $(STAMP)  ## write a page that plays rows or a sequence of SUBSET
	$(BIN)/hmr-skel view $(OUT) --out $(OUT)/view.html $(ARGS)

readme-picture: $(STAMP)  ## draw docs/images/demo.png anew from the converted demo
	$(BIN)/hmr-skel report outputs/demo --picture docs/images/demo.png

# Recipe in stages/regressor/recipes and folder of the run; TRAIN_ARGS: further options of hmr-skel train.
RECIPE ?= $(if $(filter demo-large,$(SUBSET)),pyramid,tiny)
RUN ?= outputs/$(SUBSET)-$(RECIPE)
TRAIN_ARGS ?=

# Those of ARGS that also say where the pictures go and whose bodies they show.
PLACES = $(shell take=; for word in $(ARGS); do case $$word in \
	(--data-root|--models) take=$$word;; \
	(--data-root=*|--models=*) printf "'%s' " "$$word";; \
	(*) [ -z "$$take" ] || printf "%s '%s' " $$take "$$word"; take=;; esac; done)

demo-images: convert  ## render the pictures of SUBSET's generated labels into the data root
	$(BIN)/hmr-skel demo-images $(SUBSET) --workers 2 $(PLACES)

train: $(if $(filter demo%,$(SUBSET)),demo-images,convert)  ## train RECIPE (default tiny, demo-large: pyramid) on SUBSET into RUN; rerun to resume
	$(BIN)/hmr-skel train $(OUT) --recipe $(RECIPE) --out $(RUN) $(TRAIN_ARGS)

# Names of evaluation protocols; EVAL_ARGS: further options of hmr-skel evaluate, e.g. --data-root DIR.
PROTOCOLS ?= demo demo-skel

eval: $(STAMP)  ## score RUN/best.pt and the baselines under PROTOCOLS; page in RUN/evaluation
	$(BIN)/hmr-skel evaluate $(PROTOCOLS) --shards $(OUT) --checkpoint $(RUN)/best.pt --out $(RUN)/evaluation $(EVAL_ARGS)

# Processes that the suite is spread over, a file at a time.
TEST_PROCESSES ?= 2

test: lint  ## lint and run the test suite
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# Python versions that nothing here runs: do all wheels exist, and do the types hold?
VERSIONS ?= 3.12 3.13

check-versions: $(STAMP)  ## resolve the wheels and check the types for VERSIONS (asks the package index)
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	set -e; for version in $(VERSIONS); do \
		$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --only-binary=:all: --target build/none \
			--python-version $$version -c constraints.txt "$$(echo build/wheel/*.whl)[tensorboard,matplotlib,s3]"; \
		$(BIN)/mypy --python-version $$version; \
	done

BUILD_WORK ?= build/default-body

build-tools: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,build]'

default-body-asset: build-tools  ## rebuild the committed stand-in body (downloads 130 MB)
	$(BIN)/python -m tools.default_body --work $(BUILD_WORK)

test-rebuild: build-tools  ## compare a rebuilt stand-in body with the committed one
	HMR_SKEL_BUILD_WORK=$(abspath $(BUILD_WORK)) $(BIN)/python -m pytest -m rebuild tests/test_default_body.py

chaos: $(STAMP)  ## kill conversions N times at random and compare digests, then 200 random histories
	$(BIN)/python -m tests.faults.chaos --kills $(or $(N),50) --seed $(or $(SEED),0)
	$(BIN)/python -m pytest -m chaos tests/test_faults.py

mutants: $(STAMP)  ## take every protection away, one at a time, and see which test notices (30 minutes)
	$(BIN)/python -m tests.faults.mutants --jobs $(or $(JOBS),2)

lint: $(STAMP)  ## style, format, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove the virtual environment and the outputs
	rm -rf $(VENV) outputs build *.egg-info
