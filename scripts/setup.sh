#!/usr/bin/env bash
# Installs what skep lacks on this machine, and nothing else: Debian packages and
# a Go that is new enough. A second run finds everything there, changes nothing
# and needs no network.
#
#   scripts/setup.sh          what building and running skep needs
#   scripts/setup.sh --test   and what its tests need
#   scripts/setup.sh --cluster   and what a Kubernetes on this machine needs
#
# It writes .cache/env.mk, which tells the Makefile which Go to use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

case "${1:-}" in
'' | --test | --cluster) ;;
*) die "unknown argument $1; usage: scripts/setup.sh [--test | --cluster]" ;;
esac

# --- packages -----------------------------------------------------------------

have() { PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

missing=()
have qemu-system-x86_64 || missing+=(qemu-system-x86)
have mke2fs || missing+=(e2fsprogs)
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
if [ "${1:-}" = --test ]; then
	have mmdebstrap || missing+=(mmdebstrap)
	have runc || missing+=(runc)
	have containerd || missing+=(containerd)
	[ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || missing+=(containernetworking-plugins)
	# The race detector links with the C compiler.
	have gcc || missing+=(gcc)
	[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
fi

if [ "${1:-}" = --cluster ]; then
	have runc || missing+=(runc)
	[ -n "${SKEP_CONTAINERD:-}" ] || have containerd || missing+=(containerd)
	have nft || missing+=(nftables)
	have nsenter || missing+=(util-linux)
	[ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || missing+=(containernetworking-plugins)
fi

install() {
	have apt-get || die "please install: $*"
	[ "$(id -u)" = 0 ] || die "please run as root: apt-get install --no-install-recommends $*"
	say "installing $*"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq || say "apt-get update failed; trying with the package lists that are there"
	apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

[ ${#missing[@]} = 0 ] || install "${missing[@]}"

# --- Go -----------------------------------------------------------------------

want=$(awk '$1 == "go" { print $2; exit }' go.mod)

# version prints what the Go at $1 is by itself, whatever go.mod says.
version() { (cd / && unset GOROOT && GOTOOLCHAIN=local "$1" version 2>/dev/null) | awk '{ sub(/^go/, "", $3); print $3 }'; }

at_least() { [ -n "$1" ] && [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# candidates are the Gos of this machine, the likeliest first.
candidates() {
	command -v go || true
	printf '%s\n' "$PWD/.cache/go/bin/go" /usr/local/go/bin/go
	find /usr/lib -maxdepth 1 -name 'go-*' 2>/dev/null | sort -rV | sed 's|$|/bin/go|'
}

go=
find_go() {
	local c
	while read -r c; do
		if [ -x "$c" ] && at_least "$(version "$c")" "$1"; then
			go=$c
			return
		fi
	done < <(candidates)
	return 1
}

# fetch_go puts Go $want into .cache/go. A toolchain is a Go module like any
# other, checked against the checksum database: any older Go can download it,
# also one that is too old to switch toolchains by itself.
fetch_go() {
	local old=$1 arch tmp
	arch=$(cd / && unset GOROOT && GOTOOLCHAIN=local "$old" env GOHOSTARCH)
	tmp=$PWD/.cache/go-download.$$
	say "fetching Go $want with Go $(version "$old")"
	mkdir -p "$tmp/module"
	trap 'rm -rf "$PWD"/.cache/go-download.$$' EXIT
	(
		cd "$tmp/module"
		printf 'module skep.invalid/bootstrap\n' >go.mod
		unset GOROOT
		GOTOOLCHAIN=local GOWORK=off GOFLAGS='-mod=mod -modcacherw' GOMODCACHE=$tmp/cache \
			"$old" mod download "golang.org/toolchain@v0.0.1-go$want.linux-$arch"
	) || die "fetching Go $want failed; install it from https://go.dev/dl and put it on the PATH"
	local root=$tmp/cache/golang.org/toolchain@v0.0.1-go$want.linux-$arch
	chmod +x "$root"/bin/* "$root"/pkg/tool/*/* # modules carry no modes
	rm -rf .cache/go
	mv "$root" .cache/go
	rm -rf "$tmp"
	trap - EXIT
}

mkdir -p .cache
if ! find_go "$want"; then
	find_go 1.16 || { install golang-go && find_go 1.16; } || die "no Go found after installing golang-go"
	fetch_go "$go"
	find_go "$want" || die "the Go that was fetched does not run"
fi

env="GO := $go"
if [ "$(cat .cache/env.mk 2>/dev/null)" != "$env" ]; then
	printf '%s\n' "$env" >.cache/env.mk
fi
say "ready: Go $(version "$go"), $(PATH="$PATH:/usr/sbin" qemu-system-x86_64 --version | head -n 1)"
