#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Workers: join the cluster.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

if [ ! -f /etc/kubernetes/kubelet.conf ]; then
	curl -fsS "http://${CONTROL_PLANE:?}:$FILES_PORT/join" >/run/join
	# The command of kubeadm, word by word.
	read -ra join </run/join
	rm /run/join
	"${join[@]}" --node-name "${NODE_NAME:?}"
fi
