.DEFAULT_GOAL := help
PYTHON ?= python

.PHONY: help
help:  ## show what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "  %-18s %s\n", $$1, $$2 }'

.PHONY: install
install:  ## install the package with everything for development
	$(PYTHON) -m pip install -c constraints.txt -e ".[dev]"

.PHONY: quality
quality:  ## lint, formatting and types, without changing anything
	ruff check .
	ruff format --check .
	mypy

.PHONY: format
format:  ## mend what the linter and the formatter can
	ruff check --fix .
	ruff format .

.PHONY: test
test:  ## the default tests
	$(PYTHON) -m pytest

.PHONY: test-slow
test-slow:  ## the tests that take longer, among them the main job as it stands
	$(PYTHON) -m pytest -m slow

.PHONY: test-end-to-end
test-end-to-end:  ## train, kill, resume and sample through the launchers
	$(PYTHON) -m pytest tests/scripts

.PHONY: benchmark
benchmark:  ## measure training, its memory over an hour, and the metrics; write BENCHMARKS.md
	$(PYTHON) scripts/benchmark_train.py --output benchmarks/train.json
	$(PYTHON) scripts/benchmark_memory.py --output benchmarks/memory.json
	$(PYTHON) scripts/benchmark_data.py --output benchmarks/data.json
	$(PYTHON) scripts/benchmark_metrics.py --output benchmarks/metrics.json
	$(PYTHON) scripts/write_benchmarks.py
