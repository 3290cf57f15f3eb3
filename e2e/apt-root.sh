#!/usr/bin/env bash
# apt-root.sh DIR update|madison|names|download ARG...   an apt of its own that downloads and never installs,
# with the Debian suites that hold the guests' kernels and rust-src. Bases come from the machine's own sources.
#   APT_ARCHITECTURE=arm64  of that architecture's packages, instead of this machine's
set -euo pipefail
dir=$1 verb=$2; shift 2
key=/usr/share/keyrings/debian-archive-keyring.gpg
apt=(-o "Dir=$dir" -o "Dir::State::status=$dir/status" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 -qq)
[ -z "${APT_ARCHITECTURE:-}" ] || apt+=(-o "APT::Architecture=$APT_ARCHITECTURE" -o "APT::Architectures::=$APT_ARCHITECTURE")

update() {
  # Kernels vanish from the archive as new ones come: a list of yesterday may name what is gone.
  [ -n "$(find "$dir/ready" -mtime -1 2>/dev/null)" ] && return
  mkdir -p "$dir"/etc/apt/{apt.conf.d,preferences.d,sources.list.d} "$dir"/var/lib/apt/lists/partial "$dir"/var/cache/apt/archives/partial
  : > "$dir/status"
  local uris main security
  # Cloud images keep the addresses behind mirror+file: lists.
  uris=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} /etc/apt/mirrors/*.list 2>/dev/null |
    grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian(-security)?/?( |$)' | sed 's,/* *$,,' | sort -u || true)
  main=$(grep -m1 '/debian$' <<<"$uris" || true); security=$(grep -m1 '/debian-security$' <<<"$uris" || true)
  [ -n "$main" ] && [ -n "$security" ] || { echo "setup: this machine's apt sources name no Debian archive; guests and rust-src come from there" >&2; exit 1; }
  cat > "$dir/etc/apt/sources.list" <<S
deb [signed-by=$key] $main bookworm main
deb [signed-by=$key] $security bookworm-security main
deb [signed-by=$key] $security bullseye-security main
deb [signed-by=$key] $main trixie-backports main
S
  apt-get "${apt[@]}" update && touch "$dir/ready"
}

case $verb in
  update) update ;;
  madison) apt-cache "${apt[@]}" madison "$@" ;;
  names) apt-cache "${apt[@]}" pkgnames "$@" ;;
  download) apt-get "${apt[@]}" download "$@" ;;
  *) sed -n 2,4p "$0" >&2; exit 64 ;;
esac
