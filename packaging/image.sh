#!/usr/bin/env bash
# Writes an image of skep's programs with all that they need, QEMU and a guest kernel
# too, into a file: Debian's packages and this tree's, and no registry. `make
# tools-image` calls it, as root.
#
#   packaging/image.sh FILE
#
# RELEASE is Debian's, MIRROR where its packages are.
set -euo pipefail

die() { printf 'image: %s\n' "$*" >&2; exit 1; }

[ $# = 1 ] || die "usage: packaging/image.sh FILE"
out=$(realpath "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v mmdebstrap >/dev/null || die "please run: apt-get install mmdebstrap"
GO=${GO:-go}
RELEASE=${RELEASE:-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$GO" -C packaging build -trimpath -o "$tmp/image" ./image
packaging/package.sh "$tmp" >/dev/null
mv "$tmp"/skep_*.deb "$tmp/skep.deb"

mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include=ca-certificates,qemu-system-x86 \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook="copy-in $tmp/skep.deb /tmp" \
	--customize-hook='chroot "$1" apt-get install -y -qq --no-install-recommends /tmp/skep.deb >&2' \
	--customize-hook='chroot "$1" skep setup >&2' \
	--customize-hook='rm "$1/tmp/skep.deb"' \
	"$RELEASE" - "deb $MIRROR $RELEASE main" >"$tmp/root.tar"
"$tmp/image" "$out" skep.local/skep:latest skep <"$tmp/root.tar"
