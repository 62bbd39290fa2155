#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Kernel tests in two processes: each has agents of its own, and a file's tests share a lab, so
# they stay in one process. Arguments go to pytest.
#
# Most of them race real packets against real processes, on machines that may be busy with other
# things. So a test or two that fail beside others are run once more, alone; both outcomes are
# printed, and the first one's whole report stays above. More than two, or a run that broke off,
# is a failure at once.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

again_at_most=2
cache=.cache/pytest
failed=$cache/v/cache/lastfailed
pytest=(.venv/bin/python -m pytest -q -m kernel -o "cache_dir=$cache")

rm -f "$failed"
"${pytest[@]}" -n 2 --dist loadfile "$@"
status=$?
# 1: all were run, and some failed.
if [ $status != 1 ] || [ ! -s "$failed" ]; then
	exit $status
fi
# One test a line; a file that could not be collected is in there, too.
mapfile -t names < <(.venv/bin/python -c 'import json, sys; print(*json.load(sys.stdin), sep="\n")' <"$failed")
if [ ${#names[@]} -gt $again_at_most ]; then
	exit $status
fi
printf '\nFailed beside other tests, and now run alone:\n'
printf '  %s\n' "${names[@]}"
"${pytest[@]}" "${names[@]}"
status=$?
if [ $status = 0 ]; then
	printf '\nPassed alone, failed beside other tests (report above):\n'
	printf '  %s\n' "${names[@]}"
fi
exit $status
