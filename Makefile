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

.PHONY: help setup doctor lint format layouts relay test test-unit test-kernel test-cluster kernel demo bench bench-latency \
	soak image containerd-check vagrant-check kube-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	@$(PYTEST) -q -n auto --maxprocesses 4 --dist worksteal -m "not kernel" $(ARGS)

# Without BRISTLE_REQUIRE_KERNEL=1 the tests skip, each with its reason, where the kernel cannot.
# What a test leaves behind is a failure of the run.
test-kernel: setup ## tests with real programs and packets (root)
	$(call section,kernel tests)
	@tools/setup.sh kernel || [ "$(BRISTLE_REQUIRE_KERNEL)" != 1 ]
	@$(CLEANUP)
	@timeout 180 tools/bench_tools.sh || true
	@status=0; tools/kernel_tests.sh $(ARGS) || status=$$?; \
		$(CLEANUP) --expect-none || status=1; exit $$status

test-cluster: kernel ## every policy case across nodes, in both routing modes (root)
	@BRISTLE_ALL_CASES=1 $(PYTEST) -m kernel tests/cluster/test_matrix.py $(ARGS)

# For what makes no sense without BPF.
kernel: setup
	@tools/setup.sh kernel

demo: kernel ## pods, network and policy for real, with an explanation (root)
	@$(PYTHON) tools/demo.py $(ARGS)

bench: kernel ## every benchmark; results in bench/results (root)
	@tools/bench_tools.sh || true
	@$(PYTHON) -m bench $(ARGS)

bench-latency: kernel ## round trips beside UNIX sockets and proxies; chart and report (root)
	@tools/bench_tools.sh || true
	@$(PYTHON) -m bench latency $(ARGS)

bench-%: kernel ## one area: cni, datapath, cluster, policy, scale, restart, listing (root)
	@$(PYTHON) -m bench $* $(ARGS)

soak: kernel ## twenty minutes: real programs on redirected sockets, then pods that come and go (root)
	@tools/bench_tools.sh || true
	@$(PYTHON) -m bench redirect_soak soak $(ARGS)

image: setup ## build the container image, and run the agent from it (root)
	@deploy/image.sh

containerd-check: setup ## the agent as the network of real containerds, by their CRI (root)
	@deploy/containerd.sh $(ARGS)

vagrant-check: setup ## the steps of vagrant/ that need no hypervisor, in a Debian tree (root)
	@vagrant/check.sh

kube-check: kernel ## the agent against Kubernetes' own API libraries and etcd, from a Debian tree (root)
	@tools/kube_check.sh

clean: ## remove what set-up and tools made; what killed tests left, too
	@$(CLEANUP)
	@rm -rf .venv .cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
