#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the image of deploy/Dockerfile with buildah, on a Debian made by debootstrap: no image
# registry is asked. Then runs the agent from it, as the DaemonSet would. Needs root, on Debian 12.
#
#   deploy/image.sh                 build, and run it (make image)
#   deploy/image.sh build           build alone
#   deploy/image.sh save FILE.tar   build, and write an archive for ctr or docker to import
#
# Everything is kept below .cache/image, for the next time; make clean removes it.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_base.sh

# Mounts that buildah makes are this process's own, and end with it, also when it is killed.
[ -n "${BRISTLE_IMAGE_MOUNTS:-}" ] || [ "$(id -u)" != 0 ] ||
	BRISTLE_IMAGE_MOUNTS=private exec unshare --mount --propagation private "deploy/${0##*/}" "$@"

cache=$PWD/.cache/image
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=localhost/bristle:$version
base=localhost/debian-base:bookworm
limit_mb=450
packages=(buildah runc debootstrap)
# Named so that tools/cleanup.py removes it if this process is killed.
work=/tmp/bristle-t-$$-image

say() { printf 'image: %s\n' "$*"; }
fail() {
	printf 'image: %s\n' "$@" >&2
	exit 1
}

buildah_here() {
	# overlayfs where the kernel has it; the storage is ours alone.
	local driver=vfs
	! grep -qw overlay /proc/filesystems || driver=overlay
	setpriv --pdeathsig KILL -- buildah --root "$cache/storage" --runroot "$work/run" --storage-driver "$driver" "$@"
}

clean_up() {
	[ -z "${container:-}" ] || buildah_here rm "$container" >/dev/null || true
	umount -l "$work/run" 2>/dev/null || true
	rm -rf --one-file-system "$work"
}

prepare() {
	debian_packages "${packages[@]}"
	/usr/bin/python3 tools/cleanup.py # what a killed run left
	mkdir -p "$cache" "$work/run"
	trap clean_up EXIT
	trap 'exit 1' INT TERM HUP
	# Two runs at once take turns.
	exec 8>"$cache/lock"
	flock 8
	# What a killed run left in the storage.
	buildah_here rm --all >/dev/null
}

build_base() {
	local tree
	debian_base "$work/tree" "$cache/base.tar" || fail "debootstrap failed"
	if ! buildah_here inspect --type image "$base" >/dev/null 2>&1; then
		tree=$(buildah_here from scratch)
		buildah_here add -q "$tree" "$cache/base.tar" / >/dev/null
		buildah_here config --cmd /bin/bash "$tree"
		buildah_here commit -q --rm "$tree" "$base" >/dev/null
	fi
}

build_image() {
	local outside=$cache/outside revision # what the build takes from this machine, at /mnt
	say "packages for Python"
	mkdir -p "$outside/wheels"
	.venv/bin/python deploy/requirements.py --build pyproject.toml >"$work/requirements.txt"
	# Asking for what is there already takes a quarter of a minute.
	cat constraints.txt "$work/requirements.txt" | sha256sum >"$work/wanted"
	cmp -s "$work/wanted" "$outside/wheels/.wanted" || .venv/bin/pip download -q --only-binary :all: -c constraints.txt -d "$outside/wheels" \
		-r "$work/requirements.txt" >"$work/pip.log" 2>&1 || {
		tail -n 20 "$work/pip.log" >&2
		fail "pip could not download the packages"
	}
	mv "$work/wanted" "$outside/wheels/.wanted"
	debian_apt_folder "$outside/apt" || fail "no use can be made of apt's configuration"
	echo 'Dir::Etc "/mnt/apt";' >"$outside/apt/main"
	revision=$(git rev-parse HEAD 2>/dev/null || true)
	say "building $image"
	buildah_here bud -q --layers --isolation chroot --network host --pull-never \
		--ignorefile deploy/Dockerfile.dockerignore --file deploy/Dockerfile \
		--volume "$outside:/mnt:ro" --build-arg APT_CONFIG=/mnt/apt/main \
		--build-arg "BASE=$base" --build-arg "VERSION=$version" \
		--build-arg "REVISION=$revision" \
		--build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/mnt/wheels \
		--tag "$image" . >"$work/build.log" 2>&1 || {
		tail -n 40 "$work/build.log" >&2
		fail "the image cannot be built"
	}
}

# Its one layer unpacked, in MB of a million bytes: what a node keeps of it.
check_size() {
	local size_mb
	size_mb=$(du -s --apparent-size --block-size=1000000 "$1" | cut -f 1)
	say "size: $size_mb MB of at most $limit_mb"
	[ "$size_mb" -le "$limit_mb" ] || fail "the image is too large"
}

run_image() {
	local root
	container=$(buildah_here from --pull-never "$image")
	root=$(buildah_here mount "$container")
	check_size "$root"
	# shellcheck disable=SC2086
	setpriv --pdeathsig KILL -- \
		.venv/bin/python -m tools.image_run --root "$root" --work "$work" ${RUN_ARGS:-}
}

started=$SECONDS
prepare
tools/setup.sh
build_base
build_image
case "${1:-all}" in
build) ;;
save)
	[ $# = 2 ] || fail "save wants a file"
	rm -f "$2"
	buildah_here push -q "$image" "docker-archive:$2:$image"
	;;
all) run_image ;;
*) fail "unknown argument: $1 (none, build or save FILE.tar)" ;;
esac
say "done in $((SECONDS - started)) s"
