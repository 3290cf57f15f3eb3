#!/usr/bin/env bash
# arm64.sh cargo ARG...      cargo for aarch64-unknown-linux-gnu: static binaries, and the kernel side for that machine
# arm64.sh test TEST KERNEL  the sensor's test TEST in a guest of that kernel (6.1-arm64, 6.12-arm64)
# arm64.sh all               what `make arm64` shows: docs/coverage-arm64.md and docs/doctor-arm64.md, the kernel tests, an alert
# arm64.sh std               builds Rust's standard library for it, into the cache
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${PATHWATCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pathwatch}
target=aarch64-unknown-linux-gnu
sysroot=$cache/arm64-std-$(cd "$here" && rustc -V | cut -d' ' -f2)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

std() {
  [ ! -e "$sysroot/.complete" ] || return 0
  echo "setup: building Rust's standard library for arm64 (a minute)" >&2
  local work=$sysroot.new lib=$sysroot/lib/rustlib/$target/lib
  rm -rf "$work" "$sysroot"; mkdir -p "$work/src" "$lib"
  printf '[package]\nname = "std-for-arm64"\nversion = "0.0.0"\nedition = "2024"\n' >"$work/Cargo.toml"
  : >"$work/src/lib.rs"
  # Only here is the compiler told to allow what is not stable: std is made of it.
  (cd "$work" && RUSTC_BOOTSTRAP=1 cargo build --quiet --release --target $target --target-dir "$work/target" \
    -Zbuild-std=std,panic_unwind,test,proc_macro)
  find "$work/target/$target/release/deps" -name '*.rlib' ! -name 'libstd_for_arm64*' -exec cp {} "$lib/" \;
  rm -rf "$work"; touch "$sysroot/.complete"
}

in_arm64() {
  local openssl=$cache/arm64-openssl/usr
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-Ctarget-feature=+crt-static --sysroot=$sysroot"
  export AARCH64_UNKNOWN_LINUX_GNU_OPENSSL_LIB_DIR=$openssl/lib/aarch64-linux-gnu
  export AARCH64_UNKNOWN_LINUX_GNU_OPENSSL_INCLUDE_DIR=$openssl/include
  # librdkafka's configure knows the names without a target; what is built for this machine has its own.
  export CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ AR=aarch64-linux-gnu-ar HOST_CC=cc HOST_CXX=c++ HOST_AR=ar
  export CFLAGS="-I$openssl/include -I$openssl/include/aarch64-linux-gnu" LDFLAGS="-L$openssl/lib/aarch64-linux-gnu" HOST_CFLAGS=
  # The compiler's own headers and libraries are elsewhere than this machine's.
  export PKG_CONFIG_ALLOW_CROSS=1 PKG_CONFIG_LIBDIR=$openssl/lib/aarch64-linux-gnu/pkgconfig
  exec cargo "$1" --target $target "${@:2}"
}

# An alert of the sensor itself, in a guest: cat reads what the policy names.
alert() {
  local files; work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; files=$work/files
  mkdir -p "$files/policies"
  cp "$here/../target/$target/release/pathwatch" "$files/pathwatch"
  cp -r "$here/../policies/." "$files/policies"
  cat >"$files/begin" <<'S'
#!/bin/sh
echo root:x:0:0 >/etc/shadow
/pathwatch run --policies /policies >/alerts 2>/log &
sensor=$!
until grep -q 'capture is attached' /log; do sleep 0.1; done
until grep -q '"path":"/etc/shadow"' /alerts; do cat /etc/shadow >/dev/null; sleep 0.1; done
grep -m 1 '"path":"/etc/shadow"' /alerts
uname -m
kill $sensor; wait $sensor
S
  chmod +x "$files/begin"
  GUEST_FILES=$files "$here/guest.sh" "$1" "$files/begin" | tee "$work/said"
  grep -q '"path":"/etc/shadow"' "$work/said"
  grep -q '^aarch64$' "$work/said"
  echo "test result: ok. 1 passed; 0 failed (an alert on $1)"
}

all() {
  local kernel test files=()
  cd "$here/.."; mkdir -p target/guests
  "$here/arm64.sh" cargo build --locked --release -p sensor
  "$here/images.sh" sensor target/$target/release/pathwatch arm64
  for kernel in 6.1-arm64 6.12-arm64; do
    for test in coverage kernel; do
      "$here/arm64.sh" test "$test" "$kernel" --test-threads=1 --nocapture >"target/guests/$test-$kernel.txt" 2>&1 ||
        { cat "target/guests/$test-$kernel.txt"; echo "arm64: $test failed on $kernel" >&2; return 1; }
      grep -v -E $'^(COVERAGE|DOCTOR|METRIC)\t' "target/guests/$test-$kernel.txt"
    done
    (alert "$kernel")
    files+=("$PWD/target/guests/coverage-$kernel.txt")
  done
  cargo test --locked -p sensor --test coverage -- table "$PWD"/docs/{coverage,doctor}-arm64.md "${files[@]}"
}

case ${1:-} in
  all) all ;;
  std) std ;;
  cargo) in_arm64 "${@:2}" ;;
  test) in_arm64 test --locked -p sensor --test "$2" --config "target.'cfg(unix)'.runner=['$here/guest.sh', '$3']" -- "${@:4}" ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
