#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Proves what can be proved of this folder without a hypervisor (make vagrant-check; root, Debian
# 12): the Vagrantfile, and the steps for packages, containerd, image and bristle, carried out in a
# Debian tree made by debootstrap, with a containerd of its own. Not the steps that need a cluster:
# 30, 50, 55, 70.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_base.sh

# Mounts and processes end with this one, also when it is killed: process 1 of its own tree.
if [ "$(id -u)" = 0 ] && [ -z "${BRISTLE_CHECK_WORK:-}" ]; then
	export BRISTLE_CHECK_WORK=/tmp/bristle-t-$$-vagrant
	deploy/image.sh save "$PWD/.cache/image/bristle.tar"
	trap 'rm -rf --one-file-system "$BRISTLE_CHECK_WORK" .cache/image/bristle.tar' EXIT
	setpriv --pdeathsig KILL -- unshare --mount --pid --fork --kill-child --mount-proc \
		--propagation private vagrant/check.sh
	exit
fi

say() { printf 'vagrant: %s\n' "$*"; }
fail() {
	printf 'vagrant: %s\n' "$*" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || fail "not root: run it with sudo"
work=$BRISTLE_CHECK_WORK
tree=$work/tree
archive=.cache/image/bristle.tar
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

check_vagrantfile() {
	if ! command -v vagrant >/dev/null; then
		say "installing vagrant"
		DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
			-o Dpkg::Use-Pty=0 install vagrant >/dev/null ||
			fail "apt-get could not install vagrant"
	fi
	ruby -c vagrant/Vagrantfile >/dev/null || fail "the Vagrantfile is no Ruby"
	(cd vagrant && VAGRANT_HOME=$work/home VAGRANT_DOTFILE_PATH=$work/dot \
		vagrant validate --ignore-provider) || fail "vagrant validate"
	say "ok: vagrant validate"
	# Every step that is named is there, and every one that is there is named.
	diff <(grep -o '[0-9][0-9]-[a-z-]*' vagrant/Vagrantfile | sort -u) \
		<(basename -as .sh vagrant/steps/[0-9]*.sh) || fail "steps and Vagrantfile differ"
	say "ok: the Vagrantfile names every step"
}

make_tree() {
	[ -s .cache/image/base.tar ] || fail "deploy/image.sh left no base"
	mkdir -p "$tree"
	mount --bind "$tree" "$tree" # runc wants a root that is a mount
	tar --numeric-owner -C "$tree" -xf .cache/image/base.tar
	debian_apt_folder "$tree/etc/apt"
	mkdir -p "$tree/bristle/vagrant"
	for part in deploy tools pyproject.toml vagrant/steps; do
		cp -r "$part" "$tree/bristle/${part%/*}"
	done
	cp "$archive" "$tree/bristle/vagrant/bristle.tar"
	touch "$tree/etc/fstab"
	mount --bind /dev "$tree/dev"
	mount -t proc proc "$tree/proc"
	cp /etc/resolv.conf "$tree/etc/resolv.conf"
}

# step NAME: one step, in the tree; the network of this machine only for apt.
step() {
	local network=(unshare --net)
	case $1 in
	10-* | 20-*) network=() ;;
	esac
	# shellcheck disable=SC2016
	"${network[@]}" chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
		NODE_NETWORK=192.168.56 CONTROL_PLANE=192.168.56.10 NODE_IP=192.168.56.10 \
		NODE_NAME=control-plane ${http_proxy:+http_proxy="$http_proxy"} \
		/bin/bash -c '[ ! -x /prepare ] || . /prepare; exec "/bristle/vagrant/steps/$0.sh"' "$1" ||
		fail "step $1"
	say "ok: step $1"
}

start_containerd() {
	# Its own /sys and cgroup2, as on a machine without cgroup version 1.
	unshare --net chroot "$tree" /bin/bash -c '
		mount -t sysfs sysfs /sys && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
			mount -t tmpfs tmpfs /run && exec containerd' >"$work/containerd.log" 2>&1 &
	for _ in $(seq 100); do
		! chroot "$tree" ctr version >/dev/null 2>&1 || return 0
		sleep 0.1
	done
	tail "$work/containerd.log" >&2
	fail "containerd does not start"
}

check_manifests() {
	local manifests=$tree/srv/bristle/bristle.yaml
	diff "$manifests" <(.venv/bin/bristle install --set 'devices={eth0,eth1}' \
		--set k8sServiceHost=192.168.56.10) || fail "the image prints other manifests than the tree"
	say "ok: the image prints the manifests of this tree"
	chroot "$tree" ctr -n k8s.io run --rm --cpu-shares 0 --read-only \
		--mount type=bind,src=/opt/cni/bin,dst=/host/opt/cni/bin,options=rbind:rw \
		"localhost/bristle:$version" relay \
		/opt/bristle/bin/bristle init relay --bin-dir /host/opt/cni/bin
	echo '{"cniVersion":"1.0.0"}' | chroot "$tree" env CNI_COMMAND=VERSION \
		/opt/cni/bin/bristle-cni | grep -q '"1.0.0"' || fail "the relay does not run in the tree"
	say "ok: the init step, run by containerd, installed a relay that runs on the node"
}

check_vagrantfile
make_tree
step 10-packages
step 20-containerd
chroot "$tree" containerd --version | sed 's/^/vagrant: /'
start_containerd
step 40-image
# The step looks for the lab's devices.
cat >"$tree/prepare" <<'EOF'
ip link add eth0 type veth peer name eth1
ip address add 10.0.2.15/24 dev eth0 && ip address add 192.168.56.10/24 dev eth1
ip link set eth0 up && ip link set eth1 up && ip route add default via 10.0.2.2
EOF
chmod +x "$tree/prepare"
step 60-bristle
rm "$tree/prepare"
check_manifests
say "not checked here: 30-kubernetes, 50-control-plane, 55-worker, 70-check need a cluster"
