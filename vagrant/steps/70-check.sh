#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Control plane, once all nodes have joined: is it a cluster whose pods reach each other, and only
# whom policy lets them.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

kubectl wait --for condition=Ready node --all --timeout 300s
kubectl -n kube-system rollout status daemonset/bristle --timeout 300s
kubectl get nodes,bristlenodes -o wide
kubectl -n kube-system exec daemonset/bristle -c agent -- bristle status --verbose ||
	kubectl -n kube-system exec daemonset/bristle -c agent -- bristle status
RUN_ARGS="--net-host --mount type=bind,src=$KUBECONFIG,dst=/kubeconfig,options=rbind:ro" \
	run_image "connectivity-$$" \
	/opt/bristle/bin/bristle connectivity test --kubeconfig /kubeconfig
