#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Generates the Python stubs in api/ from the .proto files. With --check, fails if what
# is committed differs from what would be generated. Run from anywhere; PYTHON names
# the interpreter that has grpcio-tools (default: the repository's environment).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
out=$root
if [ "${1:-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi
cd "$root"
# protoc runs from the root, so that stubs import each other as "from api import ...".
"$python" -m grpc_tools.protoc --proto_path=. --python_out="$out" --pyi_out="$out" \
	--grpc_python_out="$out" api/*.proto
if [ "$out" != "$root" ]; then
	for file in "$out"/api/*; do
		cmp "$file" "api/${file##*/}" || {
			echo "api/${file##*/} is not what api/*.proto gives: run tools/generate_api.sh" >&2
			exit 1
		}
	done
fi
