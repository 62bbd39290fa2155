# SPDX-License-Identifier: Apache-2.0
#
# Every target does its own set-up, from a bare Debian 12 on; doing it again takes no time.
# Those that load BPF programs need root: sudo make test.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -p no:cacheprovider
CLEANUP := /usr/bin/python3 tools/cleanup.py
section = @printf '\n== %s %s\n' "$(1)" "$$(printf '=%.0s' {1..70} | cut -c$$(printf '%s' '$(1)' | wc -c)-)"

.PHONY: help setup doctor lint format layouts relay test test-unit test-kernel kernel demo bench \
	soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## packages, virtual environment, CNI relay (nothing to do: well under a second)
	@tools/setup.sh

doctor: setup ## what this kernel offers and what bristle will use
	@$(PYTHON) tools/doctor.py

lint: setup ## ruff, mypy, import rules, clang-format, shellcheck, layouts, spelling
	$(call section,lint)
	@tools/lint.sh

format: setup ## put Python and C into form
	@tools/lint.sh format

layouts: setup ## write bpf/layouts.py from bpf/lib/layout.h
	@$(PYTHON) tools/generate_layouts.py

relay: ## build the CNI executable .venv/bin/bristle-cni
	@tools/setup.sh relay

test: lint test-unit test-kernel ## lint, unit tests, kernel tests (root)

test-unit: setup ## tests without root
	$(call section,unit tests)
	@$(PYTEST) -q -m "not kernel" $(ARGS)

# Without BRISTLE_REQUIRE_KERNEL=1 the tests skip, each with its reason, where the kernel cannot.
# What a test leaves behind is a failure of the run.
test-kernel: setup ## tests with real programs and packets (root)
	$(call section,kernel tests)
	@tools/setup.sh kernel || [ "$(BRISTLE_REQUIRE_KERNEL)" != 1 ]
	@$(CLEANUP)
	@status=0; $(PYTEST) -m kernel $(ARGS) || status=$$?; \
		$(CLEANUP) --expect-none || status=1; exit $$status

# For what makes no sense without BPF.
kernel: setup
	@tools/setup.sh kernel

demo: kernel ## pods, network and policy for real, with an explanation (root)
	@$(PYTHON) tools/demo.py $(ARGS)

bench: kernel ## every benchmark; results in bench/results (root)
	@$(PYTHON) -m bench $(ARGS)

bench-%: kernel ## one area: cni, datapath, policy, scale (root)
	@$(PYTHON) -m bench $* $(ARGS)

soak: kernel ## ten minutes of mixed load (root)
	@$(PYTHON) -m bench soak $(ARGS)

clean: ## remove what set-up and tools made; what killed tests left, too
	@$(CLEANUP)
	@rm -rf .venv .cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
