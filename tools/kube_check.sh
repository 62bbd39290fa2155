#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the agent and its tests against Kubernetes' own API libraries (make kube-check; root, Debian
# 12). tools/kubeapi is built in a tree of Debian sid, whose packages hold those libraries, and runs
# on sid's etcd. It is no whole kube-apiserver: storage, watches, definitions, validation against
# schemas, patches and field validation are Kubernetes' own; the registries of core kinds are
# reduced, and do not check what is in a spec. There are no controllers.
#
#   tools/kube_check.sh            build what is missing, and run everything
#   tools/kube_check.sh build      build alone
#   BRISTLE_KUBE_TREE=FOLDER       take this tree of Debian sid instead of making one
#
# Everything is kept below .cache/kube, for the next time; make clean removes it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_base.sh

# Mounts are this process's own, and end with it, also when it is killed.
[ -n "${BRISTLE_KUBE_MOUNTS:-}" ] || [ "$(id -u)" != 0 ] ||
	BRISTLE_KUBE_MOUNTS=private exec unshare --mount --propagation private tools/kube_check.sh "$@"

cache=$PWD/.cache/kube
tree=${BRISTLE_KUBE_TREE:-$cache/tree}
packages=(golang-any etcd-server golang-k8s-apiserver-dev golang-k8s-apiextensions-apiserver-dev
	golang-k8s-client-go-dev golang-k8s-kube-openapi-dev golang-etcd-server-dev)
# Types whose schemas the server publishes, and reads patches by.
models=(api/{core,apps,rbac,networking,discovery,coordination,events}/v1
	apiextensions-apiserver/pkg/apis/apiextensions/v1 apimachinery/pkg/apis/meta/v1
	apimachinery/pkg/{runtime,version,util/intstr,api/resource})

say() { printf 'kube: %s\n' "$*"; }
fail() {
	printf 'kube: %s\n' "$*" >&2
	exit 1
}

make_tree() {
	local mirror proxy
	[ ! -e "$tree/usr/share/gocode/src/k8s.io/apiextensions-apiserver" ] || return 0
	[ "$tree" = "$cache/tree" ] || fail "$tree has no Go packages of Kubernetes"
	command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install debootstrap >/dev/null
	say "making a tree of Debian sid"
	mirror=$(debian_sources | awk '$4 == "bookworm" { print $3; exit }')
	[ -n "$mirror" ] || fail "no source of Debian in apt's lists: run apt-get update, on Debian 12"
	proxy=$(apt-config dump Acquire::http::Proxy --format '%v' || true)
	rm -rf --one-file-system "$tree"
	mkdir -p "$tree"
	http_proxy=${http_proxy:-$proxy} debootstrap --variant=minbase sid "$tree" "$mirror" \
		>"$cache/debootstrap.log" 2>&1 || fail "debootstrap failed: $cache/debootstrap.log"
	apt-config dump | grep -E '^Acquire::(https?::|Retries)' >"$tree/etc/apt/apt.conf.d/10machine" || true
	printf 'APT::Sandbox::User "root";\nDpkg::Use-Pty "0";\n' >"$tree/etc/apt/apt.conf.d/20build"
	cp /etc/resolv.conf "$tree/etc/resolv.conf"
	say "packages: ${packages[*]}"
	mount -t proc proc "$tree/proc"
	DEBIAN_FRONTEND=noninteractive chroot "$tree" sh -c 'apt-get -qq update && apt-get -qq -y \
		--no-install-recommends install "$@" && apt-get clean' sh "${packages[@]}" \
		>"$cache/packages.log" 2>&1 || fail "apt-get failed: $cache/packages.log"
	umount "$tree/proc"
}

# go_here ARGUMENTS: a command in the tree, with Go as Debian builds with it; /build is .cache/kube.
go_here() {
	chroot "$tree" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/build GO111MODULE=off CGO_ENABLED=0 \
		GOPATH=/build/go:/usr/share/gocode GOCACHE=/build/gocache GOFLAGS=-p=2 GOPROXY=off "$@"
}

build() {
	local own=$cache/go/src/bristle.io/kubeapi digest loader
	digest=$(
		{
			cat tools/kubeapi/*.go
			echo "${models[@]}"
			chroot "$tree" dpkg-query -W 'golang-*' etcd-server
		} | sha256sum
	)
	mkdir -p "$own" "$cache/bin"
	loader=$(echo "$tree"/usr/lib/*-linux-gnu*/ld-linux-*.so.*)
	# With the libraries of its own Debian.
	printf '#!/bin/sh\nexec %q --library-path %q %q "$@"\n' "$loader" "${loader%/*}" \
		"$tree/usr/bin/etcd" >"$cache/bin/etcd"
	chmod +x "$cache/bin/etcd"
	[ "$(cat "$cache/built" 2>/dev/null)" != "$digest" ] || return 0
	say "building tools/kubeapi (ten minutes, the first time)"
	mountpoint -q "$tree/proc" || mount -t proc proc "$tree/proc"
	mountpoint -q "$tree/dev" || mount --rbind /dev "$tree/dev"
	mkdir -p "$tree/build"
	mount --bind "$cache" "$tree/build"
	cp tools/kubeapi/*.go "$own"
	# shellcheck disable=SC2016
	go_here sh -ec 'cd /build
		go build -o openapi-gen k8s.io/kube-openapi/cmd/openapi-gen
		./openapi-gen --go-header-file /dev/null --output-dir go/src/bristle.io/kubeapi/models \
			--output-pkg bristle.io/kubeapi/models --output-file models.go -r report "$@"
		cd go/src/bristle.io/kubeapi
		test -z "$(gofmt -l ./*.go)" || { gofmt -d ./*.go; exit 1; }
		go vet .
		go build -o /build/bin/kubeapi .' sh "${models[@]/#/k8s.io/}"
	umount "$tree/build"
	rmdir "$tree/build"
	echo "$digest" >"$cache/built"
}

version() {
	chroot "$tree" dpkg-query -W "$1" | cut -f 2
}

# row TITLE PYTEST-ARGUMENTS: runs tests, and adds a line to the table.
row() {
	local title=$1 log=$cache/check.log line
	shift
	# Not status 5, nothing to run: that would be a mistake here.
	BRISTLE_KUBEAPI=$cache/bin timeout 1800 .venv/bin/python -m pytest -q -rs "$@" >"$log" 2>&1 || {
		tail -n 60 "$log" >&2
		failed=1
	}
	line=$(tail -n 1 "$log")
	table+=$(printf '%-62s %s' "$title" "${line% in *}")$'\n'
	say "$title: ${line% in *}"
	grep '^SKIPPED' "$log" | sed -E 's/^SKIPPED \[([0-9]+)\] [^ ]+ /\1 skipped: /' >>"$cache/skipped.log" || true
}

check() {
	failed=0 table=
	: >"$cache/skipped.log"
	row "manifests, definitions, kubectl, warnings, 410, etcd, bookmarks" tests/cluster/test_kubernetes.py
	row "source: lists, watches, permissions, tokens, random orders" \
		tests/cluster/test_{source,trouble,order}.py
	row "what agents write; election" tests/cluster/test_{writer,lease}.py
	row "an agent and its pods, with the chart's rights (BPF)" -m kernel \
		tests/cluster/test_{rights,member,away}.py
	row "three agents, tunnel and native (BPF)" -m kernel tests/cluster/test_nodes.py
	row "what the lab's API server imitates" -n 2 \
		tests/unit/apiserver/test_{auth,apply,definitions,deletion,lists}.py \
		tests/unit/apiserver/test_{malformed,objects,official_client,patch,selectors,watches}.py
	printf '\n%s\n' "$table"
	sort "$cache/skipped.log" | uniq -c | sort -rn | sed -E 's/^ +1 //; s/^ +([0-9]+) /\1 × /' | head -n 30
	cat <<-EOF

		Shown with Kubernetes' API libraries $(version golang-k8s-apiserver-dev) and etcd $(version etcd-server), not with a kube-apiserver:
		rules of core kinds, controllers, admission beyond namespaces, and RBAC's own objects are not
		a part of it. Nodes, pods and kubelets are the tests' own.
	EOF
	return $failed
}

[ "$(id -u)" = 0 ] || fail "not root: run it with sudo"
/usr/bin/python3 tools/cleanup.py # what a killed run left
mkdir -p "$cache"
# Two runs at once take turns.
exec 8>"$cache/lock"
flock 8
make_tree
build
[ "${1:-}" = build ] || check
