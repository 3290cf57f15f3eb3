#!/usr/bin/env bash
# setup.sh STEP...   makes a Debian machine ready; every step is idempotent and a no-op when done.
#   build   what compiles the sensor: Debian packages, core's source for the BPF target, bpf-linker
#   lint    cargo-deny, and what fetches the packages of ECS and OCSF
#   fuzz    the C++ compiler that builds libFuzzer
#   e2e     what the README's journey is checked with
#   docs    what the documents' commands need
#   peers   other sensors, which are measured as well: unpacked, not installed
#   precision  what makes a Debian of a guest's own
#   guests  QEMU and the kernels of $GUEST_KERNELS (default: 5.10 6.12), see guest.sh
#   arm64   what compiles for arm64 and runs that: a cross compiler, OpenSSL, Rust's standard library, QEMU
#   kafka   a JDK, Maven, Apache Kafka's jars, kcat
#   cluster etcd, Kubernetes' programs and helm, built with Go; openssl for their certificates
#   containers  containerd, ctr and runc
#   image   buildah, and what images are made of
#   node    what a Kubernetes node has besides: CNI plugins, images
#   prometheus  Prometheus and promtool, built with Go
#   opensearch  a JDK, Maven, OpenSearch's jars
#   siem    rsyslog and its modules, unpacked and never installed: no daemon of this machine changes
# Speaks on standard error only. Everything that is not a Debian package lands in $PATHWATCH_CACHE.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
bpf_linker=0.13.0 llvm=22 cargo_deny=0.20.2 kafka=4.3.1 opensearch=2.19.1.0 rsyslog=8.2302.0
mkdir -p "$cache/bin"
export PATH=$cache/bin:$PATH
exec >&2

say() { printf 'setup: %s\n' "$*"; }
# fail THING COMMAND: what is missing and what to type.
fail() { say "$1"; say "  type: $2"; exit 1; }

# packages COMMAND=PACKAGE|/FILE=PACKAGE...: installs the packages whose command or file is missing.
packages() {
  local want=() item probe
  for item in "$@"; do
    probe=${item%%=*}
    case $probe in /*) [ -e "$probe" ] || want+=("${item#*=}") ;; *) command -v "$probe" >/dev/null || want+=("${item#*=}") ;; esac
  done
  [ ${#want[@]} -eq 0 ] && return
  local sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  command -v apt-get >/dev/null && command -v ${sudo:-true} >/dev/null ||
    fail "missing: ${want[*]}, and this machine has no apt-get${sudo:+ or no sudo} to install them" "your package manager's install of: ${want[*]}"
  say "installing Debian packages: ${want[*]} (about a minute)"
  local apt=($sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq)
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends "${want[@]}" >"$cache/apt.log" 2>&1 ||
    { tail -5 "$cache/apt.log"; fail "apt-get could not install ${want[*]} (log: $cache/apt.log)" "${sudo:+sudo }apt-get install ${want[*]}"; }
}

# cargo_tool NAME VERSION [cargo install's arguments]: a pinned tool in $cache/bin.
cargo_tool() {
  local name=$1 version=$2; shift 2
  [ -e "$cache/bin/.$name-$version" ] && return
  say "building $name $version (1 to 4 minutes)"
  # Each runs for seconds and takes minutes to optimise.
  (cd / && CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 \
    cargo install --quiet --locked "$name" --version "=$version" --root "$cache" --force "$@")
  rm -f "$cache/bin/.$name-"*
  touch "$cache/bin/.$name-$version"
}

# The BPF target has no prebuilt core: cargo builds it from the source of this very compiler.
rust_src() {
  local sysroot version library deb work
  sysroot=$(cd "$here" && rustc --print sysroot) || fail "rustc does not run" "rustup toolchain install 1.95.0"
  library=$sysroot/lib/rustlib/src/rust/library
  [ -e "$library/Cargo.lock" ] && return
  version=$(cd "$here" && rustc -V | cut -d' ' -f2)
  say "fetching core's source for rustc $version"
  # Debian carries the same source, for machines on which rustup cannot download.
  work=$cache/rust-src; rm -rf "$work"; mkdir -p "$work"
  if "$here/apt-root.sh" "$cache/apt" update 2>/dev/null &&
     deb=$("$here/apt-root.sh" "$cache/apt" madison rust-src | awk -v v="$version" '$3 ~ "^"v"\\+" {print $3; exit}') && [ -n "$deb" ]; then
    (cd "$work" && "$here/apt-root.sh" "$cache/apt" download "rust-src=$deb")
    dpkg-deb --fsys-tarfile "$work"/rust-src_*.deb | tar -x -C "$work" "./usr/src/rustc-$version/library"
    mkdir -p "${library%/library}"; rm -rf "$library"
    mv "$work/usr/src/rustc-$version/library" "$library"; rm -rf "$work"
  else
    (cd "$here" && rustup component add rust-src) || fail "core's source for rustc $version is not to be had" "rustup component add rust-src"
  fi
}

step_build() {
  packages cc=build-essential pkg-config=pkg-config perl=perl \
    /usr/include/openssl/ssl.h=libssl-dev /usr/lib/llvm-$llvm/bin/llvm-config=llvm-$llvm-dev \
    /usr/lib/llvm-$llvm/lib/libPolly.a=libpolly-$llvm-dev /usr/include/zstd.h=libzstd-dev /usr/include/zlib.h=zlib1g-dev
  rust_src
  LLVM_PREFIX=/usr/lib/llvm-$llvm PATH=/usr/lib/llvm-$llvm/bin:$PATH \
    cargo_tool bpf-linker $bpf_linker --no-default-features --features llvm-$llvm
}

step_fuzz() { packages g++=g++; }

step_lint() {
  packages python3=python3-minimal npm=npm pip3=python3-pip
  cargo_tool cargo-deny $cargo_deny
}

step_e2e() { packages python3=python3-minimal script=bsdutils jq=jq man=man-db systemd-analyze=systemd; }

step_docs() { packages python3=python3-minimal jq=jq; }

# unpacked DIR DIR-OF-APT PACKAGE...: Debian packages below DIR, not installed.
unpacked() {
  local dir=$1 apt=$2 deb; shift 2
  rm -rf "$dir"; mkdir -p "$dir"
  "$here/apt-root.sh" "$apt" update
  (cd "$dir" && "$here/apt-root.sh" "$apt" download "$@" && for deb in ./*.deb; do dpkg -x "$deb" .; rm "$deb"; done)
}

# busybox FILE DIR-OF-APT: on an ordinary machine the place of the static one is taken by the dynamic one.
busybox() {
  [ ! -e "$1" ] || return 0
  unpacked "$1.new" "$2" busybox-static
  mv "$(find "$1.new" -path '*/bin/busybox' -type f | head -n 1)" "$1"; rm -rf "$1.new"
}

step_guests() {
  packages qemu-system-x86_64=qemu-system-x86 cpio=cpio xz=xz-utils mkfs.ext4=e2fsprogs
  busybox "$cache/busybox" "$cache/apt"
  local kernel
  for kernel in ${GUEST_KERNELS:-5.10 6.12}; do "$here/guest.sh" fetch "$kernel"; done
}

# What other sensors need is unpacked with them, so that they run in a guest's bare root.
step_peers() {
  [ ! -e "$cache/peers/.complete" ] || return 0
  say "fetching opensnoop, fatrace and auditd (6 MB)"
  local work=$cache/peers
  unpacked "$work/root" "$cache/apt" libbpf-tools fatrace auditd libc6 libelf1 zlib1g libaudit1 libauparse0 \
    libcap-ng0 libwrap0 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1 libnsl2 libtirpc3
  rm -rf "$work/root/usr/share"
  touch "$work/.complete"
}

# std is built of the source that core's is built of: a `rustup target add` for machines on which rustup cannot download.
step_arm64() {
  packages qemu-system-aarch64=qemu-system-arm cpio=cpio xz=xz-utils aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu aarch64-linux-gnu-g++=g++-aarch64-linux-gnu \
    /usr/aarch64-linux-gnu/lib/libc.a=libc6-dev-arm64-cross
  export APT_ARCHITECTURE=arm64
  busybox "$cache/busybox-arm64" "$cache/apt-arm64"
  if [ ! -e "$cache/arm64-openssl" ]; then
    unpacked "$cache/arm64-openssl.new" "$cache/apt-arm64" libssl-dev
    mv "$cache/arm64-openssl.new" "$cache/arm64-openssl"
  fi
  unset APT_ARCHITECTURE
  rust_src
  "$here/arm64.sh" std
  local kernel; for kernel in ${ARM64_KERNELS:-6.1-arm64 6.12-arm64}; do "$here/guest.sh" fetch "$kernel"; done
}

step_precision() { packages python3=python3-minimal mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs; }

# jars NAME VERSION PROPERTY SIZE: what e2e/NAME/pom.xml names at that version, in $cache/NAME-VERSION.
jars() {
  packages java=openjdk-17-jre-headless mvn=maven
  local libs=$cache/$1-$2
  [ -e "$libs/.complete" ] && return
  say "fetching $1 $2 ($4)"
  mvn -q -B -f "$here/$1/pom.xml" "-D$3=$2" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$libs"
  touch "$libs/.complete"
}

step_kafka() {
  packages kcat=kcat openssl=openssl
  jars kafka $kafka kafka.version '54 MB'
}

step_cluster() {
  packages openssl=openssl
  local version need have stamp component=k8s.io/component-base/version
  version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$here/cluster/go.mod")
  need=$(awk '$1 == "go" { print $2 }' "$here/cluster/go.mod")
  stamp=cluster-${version#v}-$(cat "$here/cluster/go.mod" "$here/cluster/main.go" | sha256sum | cut -c1-12)
  if [ ! -e "$cache/$stamp/.complete" ]; then
    packages go=golang
    have=$(cd "$here/cluster" && go env GOVERSION)
    printf '%s\n' "$need" "${have#go}" | sort -VC ||
      fail "Go is ${have#go}; Kubernetes $version needs $need" "GOTOOLCHAIN=go$need $0 cluster   (before Go 1.21: put a newer go first in PATH)"
    say "building etcd, Kubernetes ${version#v} and helm (about 8 minutes)"
    rm -rf "$cache/$stamp"; mkdir -p "$cache/$stamp"
    (cd "$here/cluster" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$cache/$stamp/cluster" \
      -ldflags "-s -w -X $component.gitVersion=$version -X $component.gitMajor=${version:1:1} -X $component.gitMinor=$(cut -d. -f2 <<<"$version")" .) ||
      fail "etcd and Kubernetes did not build" "cd $here/cluster && CGO_ENABLED=0 go build -o /dev/null ."
    local name; for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl; do ln -s cluster "$cache/$stamp/$name"; done
    helm 4 helm.sh/helm/v4/internal/version.version; helm 3 helm.sh/helm/v3/internal/version.version
    ln -s helm4 "$cache/$stamp/helm"
    touch "$cache/$stamp/.complete"
  fi
  # Where the tests look, whatever the version.
  [ "$(readlink "$cache/cluster")" = "$stamp" ] || ln -sfn "$stamp" "$cache/cluster"
}

# helm MAJOR VARIABLE: that helm, which says its version by that variable, as helmMAJOR beside the cluster.
helm() {
  local version; version=$(awk -v module="helm.sh/helm/v$1" '$1 == module { print $2 }' "$here/cluster/go.mod")
  (cd "$here/cluster" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$cache/$stamp/helm$1" -ldflags "-s -w -X $2=$version" "helm.sh/helm/v$1/cmd/helm") ||
    fail "helm $version did not build" "cd $here/cluster && CGO_ENABLED=0 go build -o /dev/null helm.sh/helm/v$1/cmd/helm"
}

step_image() {
  packages buildah=buildah strip=binutils python3=python3-minimal /etc/ssl/certs/ca-certificates.crt=ca-certificates
}

step_node() {
  step_image
  packages ip=iproute2 nsenter=util-linux sysctl=procps cc=build-essential /usr/lib/cni/bridge=containernetworking-plugins kcat=kcat curl=curl
  busybox "$cache/busybox" "$cache/apt"
  "$here/images.sh" tools
}

step_containers() { packages containerd=containerd ctr=containerd runc=runc; }

step_prometheus() {
  local version name; version=$(awk '$1 == "github.com/prometheus/prometheus" { print $2 }' "$here/prometheus/go.mod")
  [ ! -e "$cache/bin/.prometheus-$version" ] || return 0
  packages go=golang script=bsdutils openssl=openssl
  say "building prometheus and promtool $version (about 5 minutes)"
  for name in promtool prometheus; do
    (cd "$here/prometheus" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$cache/bin/$name" "github.com/prometheus/prometheus/cmd/$name") ||
      fail "$name did not build" "cd $here/prometheus && CGO_ENABLED=0 go build -o /dev/null github.com/prometheus/prometheus/cmd/$name"
  done
  touch "$cache/bin/.prometheus-$version"
}

step_opensearch() { jars opensearch $opensearch opensearch.runner '53 MB'; }

step_siem() {
  local libs name; libs=/usr/lib/$(uname -m)-linux-gnu
  packages python3=python3-minimal kcat=kcat "$libs/libestr.so.0=libestr0" "$libs/libfastjson.so.4=libfastjson4" \
    "$libs/librdkafka.so.1=librdkafka1" "$libs/libcurl.so.4=libcurl4"
  [ -e "$cache/rsyslog-$rsyslog/.complete" ] && return
  say "fetching rsyslog $rsyslog"
  # Installed, it would start as this machine's own log daemon; unpacked, it is a program.
  local work=$cache/rsyslog-$rsyslog; rm -rf "$work"; mkdir -p "$work"
  "$here/apt-root.sh" "$cache/apt" update
  for name in rsyslog rsyslog-kafka rsyslog-elasticsearch; do
    (cd "$work" && "$here/apt-root.sh" "$cache/apt" download "$name=$rsyslog-*" && dpkg -x "${name}_"*.deb . && rm "${name}_"*.deb)
  done
  mv "$work"/usr/lib/*/rsyslog "$work/modules"
  touch "$work/.complete"
}

[ $# -gt 0 ] || { sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 64; }
for step in "$@"; do
  declare -F "step_$step" >/dev/null || fail "no step '$step'" "$0 build lint fuzz e2e docs peers precision guests kafka cluster containers image node prometheus opensearch siem"
  "step_$step"
done
