#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Control plane: the cluster, and what workers need to join it.
set -euo pipefail
. "${BRISTLE_TREE:-/bristle}/vagrant/steps/lib.sh"

if [ ! -f /etc/kubernetes/admin.conf ]; then
	kubeadm init --apiserver-advertise-address "${CONTROL_PLANE:?}" --node-name "${NODE_NAME:?}" \
		--pod-network-cidr 10.244.0.0/16
fi
# For the user of the box, and for root.
for home in /root /home/vagrant; do
	[ ! -d "$home" ] || {
		mkdir -p "$home/.kube"
		cp /etc/kubernetes/admin.conf "$home/.kube/config"
		chown -R --reference="$home" "$home/.kube"
	}
done

# A file server on the lab's network alone; the token in it is good for a day.
mkdir -p "$FILES"
kubeadm token create --print-join-command >"$FILES/join"
cat >/etc/systemd/system/bristle-files.service <<EOF
[Unit]
Description=Files for the workers of this lab
After=network-online.target
[Service]
ExecStart=/usr/bin/python3 -m http.server --bind $CONTROL_PLANE --directory $FILES $FILES_PORT
Restart=on-failure
DynamicUser=yes
[Install]
WantedBy=multi-user.target
EOF
service daemon-reload
service enable --now bristle-files
