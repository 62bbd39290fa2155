#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the agent as the network of real containerds, driven by their CRI as kubelet drives it:
# that of Debian bookworm (1.6) and that of Debian sid (2.x). Needs root, on Debian 12. No image
# registry is asked. Nothing of the machine is touched: containerd's packages are unpacked, not
# installed, and all of it runs in namespaces of its own, where only its own folder can be written.
#
#   deploy/containerd.sh                     both (make containerd-check)
#   deploy/containerd.sh bookworm            one of them; names of Debian suites
#   deploy/containerd.sh sid --only pods     some stories alone: --help names them
#   deploy/containerd.sh --image FILE.tar    and the DaemonSet's containers, from an archive that
#                                            deploy/image.sh save made
#
# What was fetched is kept below .cache/containerd, for the next time; make clean removes it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_base.sh

cache=$PWD/.cache/containerd
packages=(runc iptables gcc libc6-dev)
# Named so that tools/cleanup.py removes it if this process is killed.
work=/tmp/bristle-t-$$-containerd

say() { printf 'containerd-check: %s\n' "$*"; }
fail() {
	printf 'containerd-check: %s\n' "$@" >&2
	exit 1
}

prepare() {
	debian_packages "${packages[@]}"
	/usr/bin/python3 tools/cleanup.py # what a killed run left
	mkdir -p "$cache/programs" "$work"
	trap 'rm -rf --one-file-system "$work"' EXIT
	trap 'exit 1' INT TERM HUP
	# Two runs at once take turns.
	exec 8>"$cache/lock"
	flock 8
}

# apt_here SUITE ARGUMENT...: apt-get with sources and lists of its own.
apt_here() {
	local folder=$cache/apt-$1 suite=$1
	shift
	if [ ! -s "$folder/main" ]; then
		debian_apt_folder "$folder/etc" || fail "no use can be made of apt's configuration"
		mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
		: >"$folder/state/status"
		[ "$suite" = bookworm ] ||
			sed -i -n "s/ bookworm main\$/ $suite main/p" "$folder/etc/sources.list"
		printf '%s "%s";\n' Dir::Etc "$folder/etc" Dir::State "$folder/state" \
			Dir::State::status "$folder/state/status" Dir::Cache "$folder/cache" \
			Acquire::Check-Valid-Until false >"$folder/main.new" # old snapshots will do
		APT_CONFIG=$folder/main.new apt-get -qq update || fail "apt-get update for $suite failed"
		mv "$folder/main.new" "$folder/main"
	fi
	APT_CONFIG=$folder/main apt-get -qq "$@"
}

# fetched SUITE PACKAGE: unpacks a package, unless that was done; sets `tree`.
fetched() {
	tree=$cache/$1/$2
	[ ! -d "$tree" ] || return 0
	say "fetching $2 of Debian $1"
	mkdir -p "$work/download/$1"
	(cd "$work/download/$1" && apt_here "$1" download "$2") ||
		fail "Debian $1 has no package $2, or it cannot be reached"
	mkdir -p "$cache/$1"
	dpkg-deb -x "$work/download/$1/$2"_*.deb "$tree.new"
	mv "$tree.new" "$tree"
}

suites=()
while [ $# != 0 ] && [ "${1#-}" = "$1" ]; do
	case $1 in
	bookworm | sid) suites+=("$1") ;;
	*) fail "unknown argument: $1 (bookworm or sid, then options of tools.cri)" ;;
	esac
	shift
done
[ ${#suites[@]} != 0 ] || suites=(bookworm sid)

started=$SECONDS
prepare
tools/setup.sh
folders=()
for suite in "${suites[@]}"; do
	fetched "$suite" containerd
	folders+=("$tree/usr/bin")
done
fetched bookworm containernetworking-plugins
plugins=$tree/usr/lib/cni
fetched sid golang-k8s-cri-api-dev
proto=$tree/usr/share/gocode/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto

BRISTLE_LAB_KEPT=$cache/programs setpriv --pdeathsig KILL -- .venv/bin/python -m tools.cri \
	--proto "$proto" --plugins "$plugins" --work "$work" "$@" "${folders[@]}" ||
	fail "not everything is as it has to be"
say "done in $((SECONDS - started)) s"
