#!/usr/bin/env bash
# Makes packages of this tree in a directory: a .deb, a tarball of the same static
# programs, for each program what it is made of (CycloneDX), and their checksums.
# `make package` calls it. The same commit and Go make the same bytes, wherever.
#
#   packaging/package.sh DIR
#
# VERSION and SOURCE_DATE_EPOCH are git's word for the commit, and when it was made,
# unless they are set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

die() { printf 'package: %s\n' "$*" >&2; exit 1; }

[ $# = 1 ] || die "usage: packaging/package.sh DIR"
mkdir -p "$1"
out=$(cd "$1" && pwd)
root=$PWD
GO=${GO:-go}

VERSION=${VERSION:-$(git describe --tags --always --abbrev=12 --dirty)} || die "this is no clone of the repository: set VERSION and SOURCE_DATE_EPOCH"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} || die "set SOURCE_DATE_EPOCH"
# A tag v1.2.3 is the version 1.2.3, what comes after it sorts after it, and what has
# no tag below it before all, by its day.
case $VERSION in
v[0-9]*) debian=$(sed -E 's/^v//; s/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-/+/g' <<<"$VERSION") ;;
*) debian=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).${VERSION//-/+} ;;
esac
export SOURCE_DATE_EPOCH VERSION DEBIAN_VERSION=$debian LC_ALL=C TZ=UTC
# What a machine or its user may have set otherwise changes nothing.
export CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 GOWORK=off GOTOOLCHAIN=local GOFLAGS=-trimpath
unset GOEXPERIMENT GOFIPS140

STAGE=$(mktemp -d)
export STAGE
trap 'rm -rf "$STAGE"' EXIT
name=skep-$VERSION-linux-amd64
tree=$STAGE/$name

# --- programs -----------------------------------------------------------------

# program NAME PACKAGE builds a program.
program() { "$GO" build -ldflags "-s -w${3:+ -X main.version=$VERSION}" -o "$tree/bin/$1" "$2"; }
program skep ./cmd/skep version
program containerd-shim-skep-v2 ./cmd/containerd-shim-skep-v2 version
program skep-agent ./cmd/skep-agent
program skep-store ./cmd/skep-store
program skep-hello ./functions/hello
program skep-s3 ./functions/s3

# --- what is beside them --------------------------------------------------------

files=$STAGE/files
"$tree/bin/skep" packaging "$files"
gzip -9n "$files"/man1/*.1
share=$tree/share
install -D -m 644 -t "$share/man/man1" "$files"/man1/*
install -D -m 644 "$files/skep.bash" "$share/bash-completion/completions/skep"
install -D -m 644 "$files/_skep" "$share/zsh/site-functions/_skep"
install -D -m 644 "$files/skep.fish" "$share/fish/vendor_completions.d/skep.fish"
install -D -m 644 -t "$share/doc/skep" docs/install.md "$files/config.toml"

# What each program is made of, by what the linker wrote into it.
mkdir -p "$share/doc/skep/sbom"
for p in "$tree"/bin/*; do
	"$GO" -C packaging tool cyclonedx-gomod bin -json -noserial -notimestamp -std -version "$VERSION" \
		-output "$share/doc/skep/sbom/${p##*/}.cdx.json" "$p" 2>"$STAGE/log" || die "$(cat "$STAGE/log")"
done

# --- licences -------------------------------------------------------------------

# The licences of all modules that are linked into a program, each text once.
licences() {
	local -A modules=() texts=()
	local path dir file sum
	while IFS=$'\t' read -r path dir; do
		local found=
		while read -r file; do
			found=1
			sum=$(sha256sum <"$file")
			modules[${sum%% *}]+="  $path"$'\n'
			texts[${sum%% *}]=$file
		done < <(find -L "$dir" -maxdepth 1 -type f -regextype egrep -iregex '.*/((un)?licen[cs]e|copying|notice|patents)[^/]*' | sort)
		[ -n "$found" ] || die "the module $path has no licence in $dir"
	done < <(
		"$GO" version -m "$tree"/bin/* | awk '$1 == "dep" { print $2 }' | sort -u | grep -v '^github.com/skep-dev/' |
			xargs "$GO" list -m -f $'{{.Path}} {{.Version}}\t{{with .Replace}}{{.Dir}}{{else}}{{.Dir}}{{end}}'
		printf 'Go %s\t%s\n' "$("$GO" env GOVERSION)" "$("$GO" env GOROOT)"
	)
	echo "skep's programs contain these modules, each under the licence that follows it."
	for sum in $(printf '%s\n' "${!modules[@]}" | sort); do
		printf '\n%s\n%s\n' "$(printf '%0.s-' {1..88})" "${modules[$sum]}"
		cat "${texts[$sum]}"
	done
}
licences >"$share/doc/skep/licences"
cat >"$share/doc/skep/copyright" <<'END'
skep: serverless functions in microVMs, started from snapshots.
Source: https://github.com/skep-dev/skep
Copyright: the authors of skep.

Its programs contain modules by others: the file licences beside this one names them,
with their copyright and the licence of each.
END

# --- packages -------------------------------------------------------------------

rm -rf "$out"/skep[-_]*.tar.gz "$out"/skep[-_]*.deb "$out"/*.cdx.json "$out"/SHA256SUMS
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
tar -C "$STAGE" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu -cf - "$name" | gzip -9n >"$out/$name.tar.gz"

printf 'skep (%s) unstable; urgency=medium\n\n  * The commit %s.\n\n -- The authors of skep <skep@skep.invalid>  %s\n' \
	"$debian" "$VERSION" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$files/changelog.gz"
echo 'skep: statically-linked-binary' >"$files/lintian"
ln -s "$tree" "$STAGE/tree"
"$GO" -C packaging tool nfpm package --config "$root/packaging/nfpm.yaml" --packager deb --target "$out/skep_${debian}_amd64.deb" >"$STAGE/log" 2>&1 || die "$(cat "$STAGE/log")"

cp "$share"/doc/skep/sbom/*.cdx.json "$out"
(cd "$out" && sha256sum -- *.deb *.tar.gz *.cdx.json >SHA256SUMS)
(cd "$out" && ls -sh1 -- *.deb *.tar.gz *.cdx.json SHA256SUMS)
