# Needs Python 3.11 or newer, make and git; everything else is installed into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := .venv.stamp
LIBRARIES := .venv.libraries.stamp
BENCHMARKS := .venv.benchmarks.stamp
# The first Python that runs, is new enough and can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
SPIKY := sample_runs/spiky
STEADY := sample_runs/steady

.PHONY: help install report test browser test-slow test-libraries benchmark-curvature benchmark-study lint format sample-runs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

install: $(STAMP)  ## make .venv with this package and its development tools, once

# Done again only when a requirement changes.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv was found; set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# One thread: more only wait for each other on a model of 6,580 parameters, and most of all on a busy machine.
report: install  ## profile the two sample runs, report each, and compare them
	OMP_NUM_THREADS=1 $(BIN)/hnf report $(SPIKY)
	OMP_NUM_THREADS=1 $(BIN)/hnf report $(STEADY)
	OMP_NUM_THREADS=1 $(BIN)/hnf diff $(SPIKY) $(STEADY)
	@echo
	@echo "Open in a browser:"
	@ls -1 reports/spiky/index.html reports/steady/index.html reports/spiky-vs-steady/index.html

# Two workers with one thread each: torch would otherwise start as many threads as there are cores in each.
test: install browser  ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not libraries" -n 2

# Pages are looked at in Debian's Chromium. Where it cannot be installed those tests are skipped and say so.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { test "$$(id -u)" = 0 \
		&& command -v apt-get >/dev/null && apt-get update -qq >/dev/null \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; } \
		|| echo "make: no Chromium here and none can be installed: tests/browser is skipped"

test-slow: install  ## run the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not libraries" -n 2 --durations 10

# Trainers and loggers take a minute to install, so only who tests against them does.
test-libraries: $(LIBRARIES)  ## run the tests that make runs with other libraries (installs them)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m libraries -n 2

$(LIBRARIES): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,libraries]'
	@touch $(LIBRARIES)

# Long: `python -m benchmarks.curvature --only PART --write` does a part of it. Checkpoints and references stay in CACHE.
CACHE ?= reports/curvature-benchmark
benchmark-curvature: $(BENCHMARKS)  ## measure curvature beside published tools, into docs/curvature.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.curvature --write --cache $(CACHE)

# Hours: what was trained and profiled stays in reports/study-cache, so it goes on where it was stopped.
benchmark-study: install  ## train, profile and score the prediction study, into reports/study
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study

$(BENCHMARKS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,benchmarks]'
	@touch $(BENCHMARKS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sample-runs: install  ## train the two sample runs again
	$(BIN)/python -m sample_runs.make

clean:  ## remove .venv, caches and reports (the study and its runs stay)
	rm -rf $(VENV) $(STAMP) $(LIBRARIES) $(BENCHMARKS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find reports -mindepth 1 -maxdepth 1 ! -name README.md ! -name readme.png ! -name "study*" -exec rm -rf {} +
