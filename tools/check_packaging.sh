#!/usr/bin/env bash
# Check every way of installing: sdist -> wheel -> fresh environment, the wheel under each other Python found, and an
# editable installation. Usage: tools/check_packaging.sh   (after `make build`; works in build/packaging)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
builder="$root/.venv/bin/python"
scratch="$root/build/packaging"
smoke="$root/tools/smoke.py"
# The same place at every run, so that cargo finds what it compiled there before.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'packaging: %s\n' "$*" >&2; exit 1; }
fresh_env() { "$1" -m venv --clear "$scratch/env"; }
# Away from the sources and without PYTHONPATH, so that only the installation can answer.
run_smoke() { (cd "$scratch/env" && env -u PYTHONPATH ./bin/python "$smoke"); }

rm -rf "$scratch"
mkdir -p "$scratch/sdist" "$scratch/wheel"

say "build tools"
"$builder" -m pip install --quiet --constraint "$root/requirements-dev.lock" build setuptools cython maturin abi3audit

say "sdist: every source, nothing built"
(cd "$root" && "$builder" -m build --sdist --no-isolation --outdir "$scratch/sdist" . >"$scratch/sdist.log" 2>&1) ||
    { tail -40 "$scratch/sdist.log" >&2; fail "the sdist cannot be made"; }
tar tzf "$scratch"/sdist/*.tar.gz >"$scratch/sdist.list"
for source in Cargo.toml Cargo.lock setup.py LICENSE-MIT LICENSE-APACHE rust/dwcp-codec/src/lib.rs \
    rust/dwcp-python/src/lib.rs src/dwcp_fast/v1/_v1engine.pyx src/dwcp_fast/py.typed tests/conftest.py; do
    grep -q "^[^/]*/$source\$" "$scratch/sdist.list" || fail "the sdist lacks $source"
done
if grep -E '\.(so|pyd|c|pyc)$|/target/|/build/|/\.venv/' "$scratch/sdist.list"; then fail "the sdist holds what was built"; fi

say "wheel from the unpacked sdist, in pip's isolated build environment"
mkdir "$scratch/tree"
# --touch: cargo sees this copy and the checkout as one, and must not take what it built there before for this.
tar xzf "$scratch"/sdist/*.tar.gz --touch --strip-components=1 -C "$scratch/tree"
"$builder" -m pip wheel --verbose --no-deps --wheel-dir "$scratch/wheel" "$scratch/tree" >"$scratch/wheel.log" 2>&1 ||
    { tail -60 "$scratch/wheel.log" >&2; fail "the wheel cannot be made from the sdist"; }
wheel=$(echo "$scratch"/wheel/*.whl)
[[ "$wheel" == *-cp311-abi3-linux_*.whl ]] || fail "the wheel is tagged $(basename "$wheel"), not cp311-abi3"
echo "$(basename "$wheel"), $(stat -c %s "$wheel") bytes"

say "abi3audit: the extensions use the stable ABI of 3.11 and nothing newer"
"$builder" -m abi3audit --strict --summary --assume-minimum-abi3 3.11 "$wheel"

say "no RDMA library is linked: they are opened at run time, where there are any"
"$builder" -m zipfile -e "$wheel" "$scratch/members"
while read -r library; do
    linked=$(ldd "$library")
    if grep -E 'ibverbs|rdmacm|mlx|libpython' <<<"$linked"; then fail "$(basename "$library") links the above"; fi
    if grep 'not found' <<<"$linked"; then fail "$(basename "$library") needs the above"; fi
    echo "$(basename "$library"): $(wc -l <<<"$linked") libraries, none of RDMA"
done < <(find "$scratch/members" -name '*.so')

# Every other Python that starts: those on PATH, and those that pyenv holds but does not put there.
pythons=("$builder")
seen=" $("$builder" -c 'import sys; print("%d.%d" % sys.version_info[:2])') "
for python in python3.11 python3.12 python3.13 python3.14 "$HOME"/.pyenv/versions/3.1[1-9]*/bin/python3; do
    version=$("$python" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if [[ "$seen" != *" $version "* ]]; then
        pythons+=("$python")
        seen+="$version "
    fi
done
for python in "${pythons[@]}"; do
    say "the wheel in a fresh environment of $("$python" --version)"
    fresh_env "$python"
    "$scratch/env/bin/python" -m pip install --quiet --constraint "$root/requirements-dev.lock" "$wheel"
    run_smoke
done

say "pip install -e: the extensions beside the sources"
fresh_env "$builder"
"$scratch/env/bin/python" -m pip install --verbose --constraint "$root/requirements-dev.lock" --editable "$scratch/tree" \
    >"$scratch/editable.log" 2>&1 || { tail -60 "$scratch/editable.log" >&2; fail "the editable installation failed"; }
run_smoke | tee "$scratch/editable.out"
grep -q "$scratch/tree/src/dwcp_fast/_core.abi3.so" "$scratch/editable.out" || fail "the editable installation is a copy"

rm -rf "$scratch"
say "packaging: all good"
