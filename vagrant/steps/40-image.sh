#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Every node: bristle's image into containerd. The control plane builds it, unless an archive was
# put there as vagrant/bristle.tar; workers fetch it from the control plane.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

archive=$FILES/bristle.tar
mkdir -p "$FILES"
if [ -f "$TREE/vagrant/bristle.tar" ]; then
	cp "$TREE/vagrant/bristle.tar" "$archive"
elif [ "${NODE_IP:?}" = "${CONTROL_PLANE:?}" ]; then
	"$TREE/deploy/image.sh" save "$archive"
else
	wait_for 60 "the control plane's files" curl -fsS "http://$CONTROL_PLANE:$FILES_PORT/"
	curl -fsS -o "$archive" "http://$CONTROL_PLANE:$FILES_PORT/bristle.tar"
fi
ctr -n k8s.io images import "$archive"
ctr -n k8s.io images ls -q | grep -qx "localhost/bristle:$VERSION" ||
	fail "containerd has no image localhost/bristle:$VERSION"
[ "$NODE_IP" = "$CONTROL_PLANE" ] || rm "$archive"
