#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (60), or until it has made FUZZ_RUNS inputs, one after the other. A
# finding fails the run; its input is in fuzz/artifacts. What is found anew stays in fuzz/target/corpus.
#   fuzz.sh [TARGET...]    only these
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
runs=${FUZZ_RUNS:--1}
# Nothing of its own is unsafe, so there is no need for a sanitizer.
fuzz=(cargo +nightly fuzz)
scripts/setup.sh fuzz

# Inputs as long as what the target reads: start-up packets and messages of a login up to their limits and past
# them. The others find more when inputs are short.
longest() {
    case $1 in
        startup) echo 10240 ;;
        scram | secrets | mysql_login | mysql_auth) echo 2560 ;;
        *) echo 256 ;;
    esac
}

targets=("$@")
if ((${#targets[@]} == 0)); then
    for file in fuzz/fuzz_targets/*.rs; do
        target=$(basename "$file" .rs)
        [[ $target == variants ]] || targets+=("$target")
    done
fi

"${fuzz[@]}" build -s none
echo "== variants: the kept corpora"
"${fuzz[@]}" run -s none variants -- -runs=0
for target in "${targets[@]}"; do
    found=fuzz/target/corpus/$target
    mkdir -p "$found" "fuzz/corpus/$target"
    echo "== $target"
    "${fuzz[@]}" run -s none "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -runs="$runs" -max_len="$(longest "$target")" -timeout=10 -rss_limit_mb=1024 \
        -verbosity=0 -print_final_stats=1
done
