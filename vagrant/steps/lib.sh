# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# shellcheck disable=SC2034 # what others use
#
# For the steps to source. Vagrant copies a step alone, so they find this file in the synced tree.

export DEBIAN_FRONTEND=noninteractive
export KUBECONFIG=/etc/kubernetes/admin.conf
TREE=${BRISTLE_TREE:-/bristle}
VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$TREE/pyproject.toml")
# The image, and how to join: the control plane hands both to the workers over the lab's network.
FILES=/srv/bristle
FILES_PORT=8099

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
fail() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# install PACKAGE...
install() {
	apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
		install "$@" >/dev/null || fail "apt-get could not install: $*"
}

# In a tree that is not booted, such as that of check.sh, services and kernel settings are only
# written down.
booted() { [ -d /run/systemd/system ]; }

service() {
	if booted; then
		systemctl "$@"
	else
		say "not booted, so not done: systemctl $*"
	fi
}

# run_image NAME COMMAND...: a command of bristle's image, to its end; RUN_ARGS: more for ctr. No
# weight for the processor: where cgroup version 1 is mounted too, version 2 knows none.
run_image() {
	local name=$1
	shift
	# shellcheck disable=SC2086
	ctr -n k8s.io run --rm --cpu-shares 0 ${RUN_ARGS:-} "localhost/bristle:$VERSION" \
		"bristle-$name" "$@"
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
	local seconds=$1 what=$2
	shift 2
	for ((; seconds > 0; seconds -= 2)); do
		! "$@" >/dev/null 2>&1 || return 0
		sleep 2
	done
	fail "waited in vain for $what"
}
