#!/usr/bin/env bash
# Runs each fuzz target for SECONDS_EACH with coverage feedback, from the corpus in the cache and the policy library.
# Stable Rust has the instrumentation that libFuzzer wants as an LLVM pass, so no other toolchain is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-600}
corpus=${PATHWATCH_CACHE:?run it by make}/corpus
passed=0
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks"
for target in fuzz_policy fuzz_glob; do
  echo "building $target with instrumentation" >&2
  cargo build --locked --quiet --release -p sensor --example "$target" --target-dir target/fuzz
  mkdir -p "$corpus/$target" "target/fuzz/found/$target"
  [ "$target" = fuzz_policy ] && cp policies/*/*.yaml "$corpus/$target/"
  [ "$target" = fuzz_glob ] && printf '/a/{b,c}*/**\0**/x\0/[a-z]?\0/a/b1/c\0/q/x\0/b2' > "$corpus/$target/seed"
  binary=$(find target/fuzz -path '*release/examples/*' -name "$target" -type f | head -1)
  "$binary" "$corpus/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
    -artifact_prefix="target/fuzz/found/$target/" -print_final_stats=1 2>&1 | grep -E '^(Done|stat::|==|SUMMARY|artifact|thread|assertion)|INITED|panicked' | tail -20
  passed=$((passed + 1))
done
echo "test result: ok. $passed passed; 0 failed (fuzz targets, $seconds s each, no crash)"
