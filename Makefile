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
format:  ## fix what the linter and the formatter can
	ruff check --fix .
	ruff format .

.PHONY: test
test:  ## the default tests
	$(PYTHON) -m pytest

.PHONY: test-slow
test-slow:  ## the tests that take longer, among them the main job as it stands
	$(PYTHON) -m pytest -m slow

.PHONY: test-peers
test-peers:  ## our metrics beside those of other libraries: pip install --no-deps -r tests/peers.txt
	REQUIRE_PEERS=1 $(PYTHON) -m pytest -n 0 tests/benchmarks/test_metrics.py -k peers

.PHONY: audit
audit:  ## known vulnerabilities of the pinned packages, as far as the advisories can be reached: pip install pip-audit
	$(PYTHON) -m pip_audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

.PHONY: test-end-to-end
test-end-to-end:  ## train, kill, resume and sample through the launchers
	$(PYTHON) -m pytest tests/scripts

.PHONY: benchmark
benchmark:  ## measure training, sizes, data, metrics, sampling and an hour of memory of each family; write benchmarks/reports.md
	$(PYTHON) benchmarks/train.py --output benchmarks/train.json
	$(PYTHON) benchmarks/data.py --output benchmarks/data.json
	$(PYTHON) benchmarks/metrics.py --output benchmarks/metrics.json
	$(PYTHON) benchmarks/steps.py --output benchmarks/steps.json
	$(PYTHON) benchmarks/sizes.py --output benchmarks/sizes.json
	for family in ddpm gan vae autoregressive flow; do $(PYTHON) -m hfgen train $$family --resume_from_checkpoint latest || exit; done
	test -e out/classifier-digits || $(PYTHON) -m hfgen classify
	$(PYTHON) benchmarks/sample.py --model out/gan-digits out/vae-digits out/ddpm-digits \
		--extractor out/classifier-digits --output benchmarks/sample.json
	for family in ddpm gan vae autoregressive flow; do \
		$(PYTHON) benchmarks/memory.py --family $$family --output benchmarks/memory_$$family.json || exit; done
	$(PYTHON) benchmarks/write.py

.PHONY: benchmark-gpu
benchmark-gpu:  ## on a GPU, CIFAR-10: the loops, and how fast networks train; with commands for ten minutes of each
	$(PYTHON) benchmarks/train.py --dataset_name uoft-cs/cifar10 --mixed_precision bf16 --compile \
		--output benchmarks/train_gpu.json
	$(PYTHON) benchmarks/throughput.py --output benchmarks/throughput_gpu.json
	$(PYTHON) benchmarks/write.py
