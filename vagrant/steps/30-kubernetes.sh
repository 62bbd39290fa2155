#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Every node: kubeadm, kubelet and kubectl, from the Kubernetes project's own packages.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

source=https://pkgs.k8s.io/core:/stable:/${KUBERNETES_MINOR:?}/deb/
key=/etc/apt/keyrings/kubernetes.gpg
mkdir -p /etc/apt/keyrings
curl -fsSL "${source}Release.key" | gpg --dearmor --batch --yes -o "$key"
echo "deb [signed-by=$key] $source /" >/etc/apt/sources.list.d/kubernetes.list
apt-get -qq update
install kubelet kubeadm kubectl
apt-mark hold kubelet kubeadm kubectl >/dev/null

# Boxes have a first device with the same address on every node; the nodes' network is the second.
echo "KUBELET_EXTRA_ARGS=--node-ip=${NODE_IP:?}" >/etc/default/kubelet
service enable kubelet
