# `make` lists the targets. Everything is installed into .venv, pinned by constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
STUDIES ?= 227835
TESTS ?= not slow and not server
export OMP_NUM_THREADS := 1# four to twelve times faster on few cores

.PHONY: help
help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

.PHONY: demo
demo: $(VENV)/core.installed ## build the embedded demo corpus and show its chains (installs the core)
	rm -rf out/demo
	$(BIN)/cot-builder build --source demo --out out/demo --workers 1
	$(BIN)/cot-builder show demo-004 --dataset out/demo
	$(BIN)/cot-builder show demo-007 --dataset out/demo
	$(BIN)/cot-builder stats out/demo

.PHONY: test
test: $(VENV)/dev.installed ## run the tests and the doctests
	$(BIN)/python -m pytest -n 2 --dist loadfile --quiet $(ARGS)

.PHONY: quick
quick: $(VENV)/dev.installed ## the tests without servers and training, to run often
	$(BIN)/python -m pytest -n 2 --dist loadfile --quiet -m "not slow and not server" $(ARGS)

.PHONY: check
check: $(VENV)/dev.installed ## ruff (lint and format) and mypy strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/dev.installed ## let ruff mend and format what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: docs
docs: $(VENV)/dev.installed ## the reference of the five packages as pages, in out/docs
	$(BIN)/python docs/reference.py out/docs

.PHONY: tutorial
tutorial: $(VENV)/dev.installed ## run docs/tutorial.md, and write what it prints and draws into it (needs chromium)
	$(BIN)/python docs/woven.py docs/tutorial.md knowledge_banks/README.md

.PHONY: bench
bench: bench-decompose bench-build bench-browse bench-images bench-metrics bench-review bench-llm bench-remote ## all benchmarks; results in benchmarks/results

.PHONY: bench-decompose
bench-decompose: $(VENV)/dev.installed .venv-medspacy/medspacy.installed ## decomposer beside medspaCy
	$(BIN)/python benchmarks/bench_decompose.py --peer-python .venv-medspacy/bin/python

.PHONY: bench-build
bench-build: $(VENV)/dev.installed ## a whole build of STUDIES=227835 generated studies
	$(BIN)/python benchmarks/bench_build.py --studies $(STUDIES)

.PHONY: bench-growth
bench-growth: $(VENV)/dev.installed ## time, memory and shards of builds from 1,000 to 227,835 studies, with a plot
	$(BIN)/python benchmarks/bench_growth.py

.PHONY: bench-browse
bench-browse: $(VENV)/dev.installed ## searches and pages of `cot-builder browse` on what bench-build left
	$(BIN)/python benchmarks/bench_browse.py

.PHONY: bench-metrics
bench-metrics: $(VENV)/dev.installed ## text and clinical metrics beside pycocoevalcap
	$(BIN)/python benchmarks/bench_metrics.py

.PHONY: bench-review
bench-review: $(VENV)/dev.installed ## 10,000 tasks to a real Label Studio and back
	$(BIN)/python benchmarks/bench_review.py

.PHONY: review-shot
review-shot: $(VENV)/dev.installed ## review a task in headless Chromium (apt install chromium-driver) and picture it
	REVIEW_SHOT=annotation/review.png $(BIN)/python -m pytest --quiet tests/test_label_studio.py -k browser

.PHONY: bench-training
bench-training: $(VENV)/dev.installed ## training steps beside a bare TRL script, and eight examples by heart
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/overfit.py

.PHONY: bench-svr
bench-svr: $(VENV)/dev.installed ## rewards over the steps of SVR by the smoke recipe, three seeds
	rm -rf /tmp/cot-builder-svr
	$(BIN)/cot-builder build --source demo --image-scale 0.25 --out /tmp/cot-builder-svr/demo
	for seed in 0 1 2; do OMP_NUM_THREADS=1 $(BIN)/cot-builder train all --recipe smoke --dataset /tmp/cot-builder-svr/demo \
		--set run.seed=$$seed --set run.log_every=1 --out /tmp/cot-builder-svr/seed-$$seed || exit; done
	$(BIN)/python benchmarks/bench_svr.py /tmp/cot-builder-svr/seed-*

.PHONY: bench-images
bench-images: $(VENV)/dev.installed ## quarter-size images beside plain Pillow
	$(BIN)/python benchmarks/bench_images.py

.PHONY: fuzz
fuzz: $(VENV)/dev.installed ## the readers under CASES=3000 inputs of junk each, and a megabyte of anything
	COT_BUILDER_FUZZ=$(or $(CASES),3000) $(BIN)/python -m pytest -n 2 --quiet tests/test_fuzz.py $(ARGS)

# In one process: xdist kills a worker that takes over ten seconds to save what it counted.
.PHONY: coverage
coverage: $(VENV)/dev.installed ## lines that the quick tests run, by package (TESTS="slow or not slow" for all)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --quiet -m "$(TESTS)" -k "not full_disk" $(ARGS) # it fills coverage's disk too
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python benchmarks/bench_coverage.py --tests "$(TESTS)"

.PHONY: mutants
mutants: $(VENV)/dev.installed ## changes of boxes, answers, rewards and decomposer that their tests notice (MUTANTS=FILES)
	$(BIN)/python benchmarks/bench_mutants.py $(MUTANTS)

.PHONY: fuzz-guided
fuzz-guided: .venv-atheris/atheris.installed ## six readers under coverage-guided fuzzing, SECONDS=240 each
	.venv-atheris/bin/python benchmarks/fuzz_atheris.py --seconds $(or $(SECONDS),240)

.PHONY: bench-kill
bench-kill: $(VENV)/dev.installed ## build, publish, review pull and train killed 50 times each; all end the same?
	$(BIN)/python benchmarks/kill.py

.PHONY: shots
shots: $(VENV)/dev.installed ## the pages of `cot-builder browse` as a browser shows them, in out/shots (needs chromium)
	COT_BUILDER_SHOTS=out/shots $(BIN)/python -m pytest --quiet tests/test_workbench.py tests/test_workbench_run.py -k accessible $(ARGS)

.PHONY: bench-remote
bench-remote: $(VENV)/dev.installed ## build, show and stats in a bucket 20 ms away beside a local folder
	$(BIN)/python benchmarks/bench_remote.py

.PHONY: bench-llm
bench-llm: $(VENV)/dev.installed ## the client of a language model against a local server
	$(BIN)/python benchmarks/bench_llm.py

.PHONY: numpy2
numpy2: .venv-numpy2/dev.installed ## the tests again on the newer stack, constraints-numpy2.txt
	.venv-numpy2/bin/python -m pip check
	.venv-numpy2/bin/python -m pytest -n 2 --quiet $(ARGS)

# Strict: a package that the service does not answer for would be skipped, and the report clean.
.PHONY: audit
audit: .venv-audit/pip-audit-2.10.1.installed ## known advisories on the pins of both constraint files (asks pypi.org)
	@failed=; for pins in constraints.txt constraints-numpy2.txt; do \
		echo "$$pins:"; \
		.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r $$pins || failed=1; \
	done; [ -z "$$failed" ] || { echo >&2 'make audit: not clean. Findings: compare with docs/advisories.md.' \
		'"not found on PyPI", or no connection: nothing was audited, run it where https://pypi.org/pypi/pip/json opens.'; \
		exit 1; }

.PHONY: clean
clean: ## remove what was built, environments too
	rm -rf .venv .venv-numpy2 .venv-medspacy .venv-atheris .venv-audit out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* mutants

$(BIN)/python:
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/dev.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[dev,all]'
	touch $@ $(VENV)/core.installed

.venv-numpy2/dev.installed: pyproject.toml constraints-numpy2.txt
	$(PYTHON) -m venv .venv-numpy2
	.venv-numpy2/bin/python -m pip --quiet install -c constraints-numpy2.txt -e '.[dev,review,dicom,train,meteor,ray,scale,bertscore]'
	touch $@

# atheris is built for Linux and macOS only, and nothing but the fuzzing takes it.
.venv-atheris/atheris.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-atheris
	.venv-atheris/bin/python -m pip --quiet install -c constraints.txt -e '.[scale]' atheris==3.0.0
	touch $@

# medspaCy wants an older spaCy, hence an environment of its own.
.venv-medspacy/medspacy.installed: benchmarks/constraints-medspacy.txt
	$(PYTHON) -m venv .venv-medspacy
	.venv-medspacy/bin/python -m pip --quiet install -c benchmarks/constraints-medspacy.txt medspacy
	touch $@

.venv-audit/pip-audit-2.10.1.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --quiet install pip-audit==2.10.1
	touch $@
