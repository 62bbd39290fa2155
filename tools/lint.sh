#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Every static check; goes on after a failure so that one run names them all.
#
#   tools/lint.sh           check
#   tools/lint.sh format    put Python and C into form
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
shopt -s nullglob

bin=.venv/bin
formatter=clang-format-14 # other versions form some lines in another way
c_files=(bpf/*.c bpf/lib/*.h cni/*.[ch] bench/native/*.[ch])
shell_files=(tools/*.sh .ci/run deploy/*.sh vagrant/*.sh vagrant/steps/*.sh)
failed=()

check() {
	local name=$1 output status=0
	shift
	printf '  %-14s' "$name"
	output=$("$@" 2>&1 </dev/null) || status=$?
	if [ "$status" = 0 ]; then
		echo ok
	else
		echo FAILED
		printf '%s\n' "$output" | sed 's/^/    /'
		failed+=("$name")
	fi
}

c_format() {
	[ ${#c_files[@]} = 0 ] || "$formatter" --dry-run -Werror "${c_files[@]}"
}

c_warnings() {
	[ ! -f cni/shim.c ] || gcc -std=gnu11 -fsyntax-only -O1 -Wall -Wextra -Werror cni/shim.c
}

import_rules() {
	$bin/lint-imports --no-cache | grep -v "[║╔╚◀▶└]" # not the banner
}

if [ "${1:-}" = format ]; then
	$bin/ruff check -q --fix-only .
	$bin/ruff format -q .
	[ ${#c_files[@]} = 0 ] || "$formatter" -i "${c_files[@]}"
	exit
fi

check "ruff check" $bin/ruff check -q .
check "ruff format" $bin/ruff format -q --diff .
check "mypy" $bin/mypy
check "import rules" import_rules
check "clang-format" c_format
check "gcc warnings" c_warnings
check "shellcheck" shellcheck --external-sources --source-path=SCRIPTDIR/.. "${shell_files[@]}"
check "layouts" $bin/python tools/generate_layouts.py --check
check "api stubs" tools/generate_api.sh --check
check "config docs" $bin/python -m tools.generate_config_docs --check
check "codespell" $bin/codespell
check "tree" $bin/python tools/check_tree.py

[ "$(id -u)" != 0 ] || chown -R --no-dereference --reference=pyproject.toml .cache
if [ ${#failed[@]} -gt 0 ]; then
	IFS=,
	echo "lint: failed: ${failed[*]}" >&2
	exit 1
fi
