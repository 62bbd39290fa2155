#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Control plane: bristle, by the manifests that its image prints. It needs no Helm.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

manifests=$FILES/bristle.yaml
# The first device is the box's own way out, with the same address on every node; the second one
# joins the nodes.
first=$(ip -o route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
second=$(ip -o -4 address | awk -v net="${NODE_NETWORK:?}." 'index($4, net) == 1 { print $2; exit }')
[ -n "$second" ] || fail "no device has an address of $NODE_NETWORK.0/24"
devices=$second
[ -z "$first" ] || [ "$first" = "$second" ] || devices=$first,$second

# shellcheck disable=SC2086
run_image "install-$$" /opt/bristle/bin/bristle install --set "devices={$devices}" \
	--set "k8sServiceHost=${CONTROL_PLANE:?}" ${BRISTLE_VALUES:-} >"$manifests"
if ! command -v kubectl >/dev/null; then
	say "no kubectl here, so not applied: $manifests"
	exit 0
fi
kubectl apply --server-side -f "$manifests"
kubectl -n kube-system rollout status daemonset/bristle --timeout 300s
wait_for 120 "this node to be Ready" \
	kubectl wait --for condition=Ready "node/${NODE_NAME:?}" --timeout 1s
