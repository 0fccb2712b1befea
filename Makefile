# Everything a person or a machine types. `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs at a time would fight over apt's lock.
.NOTPARALLEL:

# Debian puts mosquitto where a user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin
# The Python that makes .venv; empty: the first that fits.
export PYTHON ?=
# An index with PyTorch's CPU wheels; empty: pip's own settings, else the registry's CUDA build.
export TORCH_INDEX ?=
# Further words for demo, run, token and test.
ARGS ?=
# So many processes run the tests side by side, a file's tests in one; 0: one after the other.
WORKERS ?= 0

# GPU=1 and GPU=0 choose; without either, what is installed stays.
ifeq ($(GPU),1)
flavour := gpu
else ifeq ($(GPU),0)
flavour := cpu
else
flavour := $(if $(wildcard .venv/.inferd-gpu),gpu,cpu)
endif

venv := .venv
python := $(venv)/bin/python
installed := $(venv)/.inferd-$(flavour)
installed_dev := $(venv)/.inferd-dev
# OPENVINO=1 adds it; once there it stays, and comes again with a new .venv.
installed_openvino := $(venv)/.inferd-openvino
ifneq ($(filter 1,$(OPENVINO))$(wildcard $(installed_openvino)),)
with_openvino := $(installed_openvino)
endif

.PHONY: help setup setup-dev mosquitto postgresql chromium demo run token test crash cluster faults fuzz audit mutants bench check lint types imports schemas lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(installed) $(with_openvino) ## install into .venv (GPU=1: the CUDA build, OPENVINO=1: with OpenVINO; again: nothing to do)

demo: setup mosquitto ## show it: real pictures in, events, vectors and a search out
	@$(python) -m daemon demo $(ARGS)

run: setup mosquitto ## as demo, and stay up until Ctrl-C
	@$(python) -m daemon demo --stay $(ARGS)

pictures: setup mosquitto ## your own: FOLDER=~/Pictures made searchable, and kept in data/pictures
	@test -n "$(FOLDER)" || { echo "which folder? make pictures FOLDER=~/Pictures" >&2; exit 2; }
	@$(python) -m daemon pictures "$(FOLDER)" $(ARGS)

token: setup ## a development key and a token for REST (ARGS='--sub me --hours 8 --admin')
	@$(python) -m demos.make_token $(ARGS)

test: setup-dev mosquitto postgresql chromium ## all tests (ARGS='-k name' for some, WORKERS=2)
	@$(python) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

crash: setup-dev mosquitto $(if $(findstring postgresql,$(ARGS)),postgresql) ## kill daemons N=200 times by chance; nothing may be lost (SEED=)
	@$(python) -m tests.crash.run --kills $(or $(N),200) $(if $(SEED),--seed $(SEED)) $(ARGS)

cluster: setup-dev mosquitto postgresql ## N=20000 jobs on 4 daemons that are killed and cut off; needs root (SEED=)
	@$(python) -m tests.cluster.run --jobs $(or $(N),20000) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults: setup-dev mosquitto ## fail all that inferd depends on, the long way too (ARGS='-k broker' for some)
	@$(python) -m pytest -m "long or not long" tests/faults $(ARGS)

mutants: setup-dev mosquitto ## N=10000 mutated pictures through the daemon beside good jobs (SEED=1)
	@$(python) -m tests.hostile.run --count $(or $(N),10000) --seed $(or $(SEED),1)

fuzz: setup-dev mosquitto ## N=10000 hostile messages and calls at MQTT and REST
	@INFERD_TEST_FUZZ=$(or $(N),10000) $(python) -m pytest --timeout 3600 tests/fuzz $(ARGS)

bench: setup-dev mosquitto ## measure, as ratios: a table, and JSON in bench-output (ARGS='--only clip')
	@$(python) -m bench $(ARGS)

audit: setup-dev ## known vulnerabilities of what is pinned; needs the network
	@requirements/audit.sh $(venv)

check: lint types imports ## formatting, lint, types and the import rule

lint: setup-dev
	$(venv)/bin/ruff format --check .
	$(venv)/bin/ruff check .

types: setup-dev
	$(venv)/bin/mypy

imports: setup-dev
	$(python) -m pytest -q tests/unit/test_architecture.py

screenshots: setup-dev mosquitto chromium ## make README's pictures of the console anew, in docs/images
	@$(python) -m tests.console.screenshots $(ARGS)

schemas: setup ## write the contracts again: http_shim/openapi.json, daemon/asyncapi.json
	@$(python) -m daemon schemas --write

lock: ## resolve pyproject.toml again and rewrite requirements/*.txt
	@python=$$(.ci/ensure-python.sh) && requirements/update.sh "$$python"

clean: ## remove .venv and caches (never ./data)
	rm -rf $(venv) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-dev: $(installed) $(with_openvino) $(installed_dev)

mosquitto:
	@.ci/ensure-mosquitto.sh

# Without it the tests of that engine are skipped, and fail in CI.
postgresql:
	-@.ci/ensure-postgresql.sh

# Without it the tests of the console are skipped, and fail in CI.
chromium:
	-@.ci/ensure-chromium.sh

# Made afresh when a list changes or the flavour does: onnxruntime and onnxruntime-gpu own the same
# folder, so neither can be replaced by the other in place.
$(installed): requirements/base.txt requirements/torch.txt requirements/torch-cpu.txt requirements/$(flavour).txt
	@python=$$(.ci/ensure-python.sh) && echo "== making $(venv) with $$python" && rm -rf $(venv) && "$$python" -m venv $(venv)
	@requirements/install.sh $(venv) $(flavour)
	@touch $@

$(installed_openvino): requirements/openvino.txt $(installed)
	@requirements/install.sh $(venv) openvino
	@touch $@

# Every script in it names the folder that it was made in, so a moved or copied checkout needs its own.
ifneq ($(shell test ! -e $(venv)/pyvenv.cfg || grep -qF -- " $$(pwd -P)/$(venv)" $(venv)/pyvenv.cfg || echo moved),)
$(installed): moved
.PHONY: moved
moved:
	@echo "== $(venv) was made in another folder: making it anew"
endif

$(installed_dev): requirements/dev.txt $(installed)
	@requirements/install.sh $(venv) dev
	@touch $@
