# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# For scripts to source: a plain Debian bookworm made by debootstrap, with this machine's own apt
# configuration (sources, proxies). No image registry is asked.

# debian_packages PACKAGE...: installs on this machine what is not there. Uses the caller's `say` and
# `fail`.
debian_packages() {
	local package missing=()
	[ "$(id -u)" = 0 ] || fail "not root: run it with sudo"
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
			missing+=("$package")
	done
	[ ${#missing[@]} != 0 ] || return 0
	say "installing Debian packages: ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 install "${missing[@]}" >/dev/null ||
		fail "apt-get could not install: ${missing[*]}"
}

# Debian's own sources of this machine, a one-line entry each: those that apt has lists of.
debian_sources() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' \
		'Created-By: Packages' | sort -u | awk -F '|' '
			$1 == "Debian" && $3 ~ /^bookworm/ && $4 == "main" {
				print "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " \
					$2, $3, $4
			}'
}

# debian_apt_folder FOLDER: an /etc/apt for the tree, of this machine's sources and settings.
debian_apt_folder() {
	mkdir -p "$1/apt.conf.d" "$1/preferences.d" "$1/sources.list.d" "$1/trusted.gpg.d"
	debian_sources >"$1/sources.list"
	if ! grep -q ' bookworm main$' "$1/sources.list"; then
		echo "no source of Debian bookworm in apt's lists: run apt-get update, on Debian 12" >&2
		return 1
	fi
	apt-config dump | grep -E '^Acquire::(https?::|Retries)' >"$1/apt.conf.d/10machine" || true
	printf 'APT::Sandbox::User "root";\nDpkg::Use-Pty "0";\n' >"$1/apt.conf.d/20build"
}

# debian_base FOLDER TAR: makes TAR, a minimal tree in FOLDER packed, unless it is there.
debian_base() {
	local tree=$1 tar=$2 mirror proxy
	[ ! -s "$tar" ] || return 0
	mirror=$(debian_sources | awk '$4 == "bookworm" { print $3; exit }')
	[ -n "$mirror" ] || {
		echo "no source of Debian bookworm in apt's lists: run apt-get update, on Debian 12" >&2
		return 1
	}
	proxy=$(apt-config dump Acquire::http::Proxy --format '%v' || true)
	mkdir -p "$tree" "$(dirname "$tar")"
	http_proxy=${http_proxy:-$proxy} debootstrap --variant=minbase bookworm "$tree" "$mirror" \
		>"$tree.log" 2>&1 || {
		tail -n 20 "$tree.log" >&2
		return 1
	}
	# What Debian's own slim images leave out; dpkg does so for later packages, too.
	printf 'path-exclude %s\n' '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/locale/*' \
		'/usr/share/man/*' >"$tree/etc/dpkg/dpkg.cfg.d/slim"
	rm -rf "$tree"/usr/share/{doc,info,locale,man}/* "$tree"/var/cache/apt/* \
		"$tree"/var/lib/apt/lists/* "$tree"/var/log/*
	tar --numeric-owner -C "$tree" -cf "$tar.new" .
	mv "$tar.new" "$tar"
	rm -rf "$tree" "$tree.log"
}
