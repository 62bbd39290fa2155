#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Every node: what the later steps need, and what kubeadm wants of a machine.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

apt-get -qq update
install ca-certificates conntrack curl ethtool gpg iproute2 iputils-ping jq kmod make procps python3 socat

# The kubelet refuses to work with swap.
sed -i '/\sswap\s/s/^[^#]/#&/' /etc/fstab
! booted || swapoff -a

# overlay: containerd's storage. Bristle itself needs no module but vxlan, with routingMode tunnel;
# the kernel loads that by itself.
mkdir -p /etc/modules-load.d /etc/sysctl.d
echo overlay >/etc/modules-load.d/kubernetes.conf
# kubeadm's preflight check. Bristle sets forwarding for its own devices alone.
echo 'net.ipv4.ip_forward = 1' >/etc/sysctl.d/90-kubernetes.conf
if booted; then
	modprobe overlay
	sysctl -q -p /etc/sysctl.d/90-kubernetes.conf
fi
