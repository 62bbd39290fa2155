#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Every node: the container runtime, from Debian.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

install containerd runc
mkdir -p /etc/containerd /opt/cni/bin /etc/cni/net.d
# systemd looks after cgroups, as the kubelet expects; CNI plugins are where Kubernetes has them,
# not where Debian does.
containerd config default | sed \
	-e 's/SystemdCgroup = false/SystemdCgroup = true/' \
	-e 's|bin_dir = "/usr/lib/cni"|bin_dir = "/opt/cni/bin"|' \
	>/etc/containerd/config.toml
grep -q 'SystemdCgroup = true' /etc/containerd/config.toml ||
	fail "containerd's configuration has no SystemdCgroup"
grep -q 'bin_dir = "/opt/cni/bin"' /etc/containerd/config.toml ||
	fail "containerd's configuration has another folder for CNI plugins"
service enable --now containerd
service restart containerd
