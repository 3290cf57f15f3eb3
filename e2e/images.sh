#!/usr/bin/env bash
# images.sh sensor BINARY [arm64]   the sensor's image of that static binary: target/image/pathwatch[-arm64].tar
# images.sh tools            what a test cluster's pods are made of: pause.tar and busybox.tar in the cache
# Built by buildah, without a Docker engine and without a registry; the archives are OCI's.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(dirname "$here")
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
exec >&2
store=$(mktemp -d); trap 'rm -rf "$store"' EXIT
# vfs needs no mount, chroot no runtime, and what is here belongs to nobody else.
buildah() { command buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }

# image NAME CONTEXT DOCKERFILE ARCHIVE [buildah's arguments]
image() {
  local name=$1 context=$2 dockerfile=$3 archive=$4; shift 4
  buildah build --quiet --isolation chroot --timestamp 0 --format oci -t "$name" -f "$dockerfile" "$@" "$context" >/dev/null
  rm -f "$archive"
  buildah push --quiet "$name" "oci-archive:$archive:$name"
}

tools() {
  mkdir -p "$cache/images"
  [ ! -e "$cache/images/.complete-2" ] || return 0
  local work=$store/tools; mkdir -p "$work/bin" "$work/etc" "$work/tmp" "$work/home/ann" "$work/opt"
  cc -Os -static -s -o "$work/pause" "$here/cluster/pause.c"
  printf 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n' >"$work/pause.docker"
  image localhost/pause:1 "$work" "$work/pause.docker" "$cache/images/pause.tar"
  # Debian's busybox with a link for each of its names, as such images are.
  cp "$cache/busybox" "$work/bin/busybox"
  local name; for name in $("$cache/busybox" --list); do [ "$name" = busybox ] || ln -s busybox "$work/bin/$name"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n' >"$work/etc/passwd"
  printf 'root:*:19000:0:99999:7:::\n' >"$work/etc/shadow"
  printf 'FROM scratch\nCOPY bin /bin\nCOPY etc /etc\nCOPY home /home\nCOPY tmp /tmp\nCMD ["sh"]\n' >"$work/busybox.docker"
  image docker.io/library/busybox:1.35 "$work" "$work/busybox.docker" "$cache/images/busybox.tar"
  # The same under a name that policies exempt; another image, since a runtime may call one image by any of its names.
  echo 'LABEL agent=yes' >>"$work/busybox.docker"
  image registry.k8s.io/e2e/agent:1 "$work" "$work/busybox.docker" "$cache/images/agent.tar"
  touch "$cache/images/.complete-2"
}

sensor() {
  local binary=$1 arch=${2:-} context=$store/context version archive
  archive=$root/target/image/pathwatch${arch:+-$arch}.tar
  mkdir -p "$context/target/image" "$root/target/image"
  cp "$binary" "$context/target/image/pathwatch"
  "${arch:+aarch64-linux-gnu-}strip" "$context/target/image/pathwatch"
  cp /etc/ssl/certs/ca-certificates.crt "$context/target/image/"
  cp -r "$root/policies" "$context/policies"
  version=$(awk -F'"' '/^version/ { print $2; exit }' "$root/Cargo.toml")
  "$here/sbom.py" "$root/Cargo.toml" "$root/Cargo.lock" >"$context/target/image/sbom.cdx.json"
  "$here/notices.py" >"$context/target/image/THIRD-PARTY.txt"
  image "ghcr.io/pathwatch/pathwatch:$version" "$context" "$root/Dockerfile" "$archive" ${arch:+--arch "$arch"} \
    --build-arg FILES=prebuilt --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)"
  local size; size=$(du -b "$archive" | cut -f1)
  printf 'image: ghcr.io/pathwatch/pathwatch:%s, %d.%d MB, in %s\n' "$version" $((size / 1000000)) $((size / 100000 % 10)) "${archive#"$root/"}"
  [ "$size" -le 20000000 ] || { echo "image: more than 20 MB"; exit 1; }
}

case ${1:-} in
  tools) tools ;;
  sensor) sensor "${2:?BINARY}" "${@:3}" ;;
  *) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 64 ;;
esac
