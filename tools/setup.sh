#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything bristle needs on a bare Debian 12: packages, the virtual environment, the CNI relay.
#
#   tools/setup.sh          all of it; returns at once when there is nothing to do
#   tools/setup.sh relay    the relay .venv/bin/bristle-cni alone
#   tools/setup.sh kernel   installs nothing: says what this machine lacks to run BPF tests and
#                           the demo; exit status 1 if anything
#
# Package sources are those of the machine's own apt and pip configuration; none is named here.
set -euo pipefail
cd "$(dirname "$0")/.."

# What runs, what builds, what the tests and benchmarks call.
packages=(
	python3 python3-venv python3-bpfcc # the environment; bcc with LLVM exists only here
	linux-libc-dev gcc libc6-dev       # headers of the programs; the relay, static
	clang-14                           # BTF of layout.h, for tools/generate_layouts.py
	iproute2 iputils-ping procps util-linux
	iperf3 nftables iptables containernetworking-plugins bpftool
	clang-format shellcheck            # make lint
	ca-certificates
)
python=/usr/bin/python3 # bcc's package serves the distribution's interpreter, no other
venv=.venv
stamp=$venv/.setup
relay=$venv/bin/bristle-cni
relay_stamp=$venv/.relay
relay_flags=(-std=gnu11 -Os -s -static -Wall -Wextra)

say() { printf 'setup: %s\n' "$*"; }
fail() {
	printf 'setup: %s\n' "$@" >&2
	exit 1
}

# Runs a command quietly; shows what it said if it fails.
quietly() {
	local log status=0
	log=$(mktemp)
	"$@" >"$log" 2>&1 </dev/null || status=$?
	[ "$status" = 0 ] || tail -n 40 "$log" >&2
	rm -f "$log"
	return "$status"
}

missing_packages() {
	local installed package
	installed=" $(dpkg-query -W -f '${Package}=${db:Status-Status} ' "${packages[@]}" 2>/dev/null || true)"
	for package in "${packages[@]}"; do
		[[ $installed == *" $package=installed "* ]] || printf '%s ' "$package"
	done
}

install_packages() {
	local missing id='' version=''
	command -v dpkg-query apt-get >/dev/null ||
		fail "this is not a Debian system (no apt-get)." \
			"Bristle is set up on Debian 12; elsewhere use a Debian 12 machine, VM or container."
	missing=$(missing_packages)
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] ||
		fail "not root, and these Debian packages are missing: $missing" "Run: sudo make setup"
	# shellcheck disable=SC1091
	{ id=$(. /etc/os-release && echo "$ID"); version=$(. /etc/os-release && echo "${VERSION_ID:-}"); }
	[ "$id $version" = "debian 12" ] ||
		say "made for Debian 12; this is $id ${version:-(no version)}: trying all the same"
	say "installing Debian packages: $missing"
	export DEBIAN_FRONTEND=noninteractive
	# A foreign source that is out of order must not stop us: what counts is the installation.
	quietly apt-get -qq update || say "apt-get update had errors; going on with the lists there are"
	# shellcheck disable=SC2086
	quietly apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
		install $missing || fail "apt-get could not install: $missing"
}

# What the environment was made of. The path counts, since scripts in it name their interpreter.
environment_key() {
	{
		pwd -P
		readlink -f "$python"
		cat pyproject.toml constraints.txt tools/setup.sh
	} | sha256sum
}

make_environment() {
	local key
	[ -x "$python" ] || fail "$python is missing"
	key=$(environment_key)
	if [ -x $venv/bin/bristle ] && [ "$(cat $stamp 2>/dev/null)" = "$key" ]; then
		return 0
	fi
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		fail "$python is $("$python" -V); 3.11 or newer is needed (Debian 12 has it)"
	if [ -e $venv ] && ! [ -w $venv ]; then
		fail "$venv belongs to another user." "Run: sudo make setup"
	fi
	# Another folder's environment, or one that does not see bcc, is of no use.
	if [ -e $venv ] && ! { grep -qx 'include-system-site-packages = true' $venv/pyvenv.cfg &&
		grep -qxF "command = $python -m venv --system-site-packages $(pwd -P)/$venv" $venv/pyvenv.cfg &&
		$venv/bin/python -c 'import pip'; } 2>/dev/null; then
		say "$venv was made elsewhere or is broken: making it again"
		rm -rf $venv
	fi
	rm -f $stamp
	if ! [ -e $venv ]; then
		say "making the virtual environment $venv"
		quietly "$python" -m venv --system-site-packages "$(pwd -P)/$venv" || fail "python3 -m venv failed"
	fi
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PIP_USER=0
	say "installing the Python packages of constraints.txt"
	quietly $venv/bin/python -m pip install -q --no-deps -r constraints.txt ||
		fail "pip could not install the packages of constraints.txt (see above)"
	quietly $venv/bin/python -m pip install -q --no-deps --no-build-isolation -e . ||
		fail "pip could not install bristle itself (see above)"
	$venv/bin/python -c 'import bcc' || fail "bcc of the package python3-bpfcc does not import"
	printf '%s\n' "$key" >$stamp
	give_back $venv
}

build_relay() {
	local key
	if ! [ -f cni/shim.c ]; then
		return 0
	fi
	key=$( (echo "${relay_flags[@]}" && cat cni/*.[ch]) | sha256sum)
	if [ -x $relay ] && [ "$(cat $relay_stamp 2>/dev/null)" = "$key" ]; then
		return 0
	fi
	say "building $relay"
	mkdir -p $venv/bin
	gcc "${relay_flags[@]}" -o $relay.new cni/shim.c || fail "the relay cni/shim.c does not compile"
	mv $relay.new $relay
	printf '%s\n' "$key" >$relay_stamp
	give_back $venv
}

# Under sudo: what was made belongs to whoever owns the tree, who can then work on it.
give_back() {
	[ "$(id -u)" != 0 ] || chown -R --no-dereference --reference=pyproject.toml "$@"
}

# Exit status 1 and a plain sentence for each thing that BPF needs and this machine lacks.
check_kernel() {
	local lacking=0 release major minor
	lack() {
		printf 'kernel: %s\n' "$*" >&2
		lacking=1
	}
	release=$(uname -r)
	IFS=.- read -r major minor _ <<<"$release"
	[ "$(id -u)" = 0 ] || lack "not root: loading BPF programs needs it. Run with sudo."
	((major * 1000 + minor >= 5010)) ||
		lack "kernel $release is too old: 5.10 is the least (6.6 for TCX links)."
	[ -e /proc/sys/kernel/unprivileged_bpf_disabled ] ||
		lack "this kernel has no bpf(2): CONFIG_BPF_SYSCALL is off, or /proc is not mounted."
	grep -qw bpf /proc/filesystems ||
		lack "no bpffs: this kernel cannot mount the BPF file system (CONFIG_BPF_SYSCALL)."
	# Socket hooks alone need it: a remark, no obstacle.
	if ! grep -qw cgroup2 /proc/filesystems; then
		echo "kernel: no cgroup2 (CONFIG_CGROUPS is off): no socket hooks." >&2
	elif ! awk '$3 == "cgroup2" { found = 1 } END { exit !found }' /proc/mounts; then
		echo "kernel: cgroup2 is not mounted: no socket hooks. mount -t cgroup2 none DIR" >&2
	fi
	return $lacking
}

case "${1:-all}" in
kernel)
	check_kernel
	exit
	;;
all | relay) ;;
*) fail "unknown argument: $1 (none, relay or kernel)" ;;
esac

# Two runs at once (a lint beside a test) take turns. The lock is on this file: nothing is left.
if command -v flock >/dev/null; then
	exec 9<tools/setup.sh
	flock 9
fi
[ "${1:-all}" = relay ] || install_packages
[ "${1:-all}" = relay ] || make_environment
build_relay
