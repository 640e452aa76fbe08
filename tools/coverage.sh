#!/usr/bin/env bash
# Prints the coverage of python/rnncore by the Python tests, and of the Rust core by all tests.
#
# The Rust tests and an instrumented module, used by the Python tests from a copy of the package,
# write their counts to coverage/; llvm-cov adds them up. Called by `make coverage`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$PWD/coverage
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc --print sysroot)/lib/rustlib/$host/bin
[ -x "$llvm/llvm-cov" ] || rustup component add llvm-tools

rm -rf "$out"
mkdir -p "$out/counts" "$out/python"
export CARGO_TARGET_DIR=$PWD/target/coverage
export RUSTFLAGS="-C instrument-coverage"
export LLVM_PROFILE_FILE="$out/counts/%p-%m.profraw"

# ---- Rust tests: run them, and keep the names of their binaries ----------------------------------
cargo test --profile checked --locked --lib --tests
mapfile -t binaries < <(
    cargo test --profile checked --locked --lib --tests --no-run --message-format=json 2>"$out/build.log" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
)

# ---- The module, instrumented, in a copy of the package ------------------------------------------
PYO3_BUILD_EXTENSION_MODULE=1 cargo build --profile checked --locked --lib --features python
cp -r python/rnncore "$out/python/"
find "$out/python" -name '_core*.so' -delete
module=$out/python/rnncore/_core.abi3.so
case $host in
*darwin*) cp "$CARGO_TARGET_DIR/checked/librnncore.dylib" "$module" ;;
*) cp "$CARGO_TARGET_DIR/checked/librnncore.so" "$module" ;;
esac
PYTHONPATH=$out/python python -m coverage run --data-file="$out/python.data" \
    -m pytest tests "$out/python/rnncore"

# ---- The two tables ------------------------------------------------------------------------------
"$llvm/llvm-profdata" merge -sparse "$out"/counts/*.profraw -o "$out/rust.profdata"
objects=()
for binary in "${binaries[@]}"; do objects+=(-object "$binary"); done
echo
echo "Rust: src, by the Rust and the Python tests"
"$llvm/llvm-cov" report "$module" "${objects[@]}" -instr-profile="$out/rust.profdata" \
    --sources "$PWD/src" --show-region-summary=false --show-branch-summary=false
echo
echo "Python: python/rnncore, by the Python tests"
python -m coverage report --data-file="$out/python.data"
