#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most nine minutes: build for this GPU, the whole test suite with CUDA
# on, the benchmarks, and compute-sanitizer's memcheck and racecheck on the tests marked `sanitize`.
#
#     benchmarks/on_gpu.sh OUTDIR
#
# Needed: an NVIDIA GPU, nvcc, a C++20 compiler, and a python3 with torch 2.10 or newer, cmake, ninja, pybind11,
# scikit-build-core and what the tests import. No network is used, and the checkout is not written to.
# OUTDIR gets at most eight small files: summary.txt, info.json, benchmarks.json and a log for each stage.
# A stage that fails is named in summary.txt and does not stop the next. Exit status: 0 all passed, 1 a stage failed,
# 2 a tool is missing, 3 there is no GPU.
set -uo pipefail

deadline=515 # seconds for everything; the rest of the nine minutes is for what no budget holds
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
[ $# -eq 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }

gpu=$(timeout 60 "$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>&1)
status=$?
if [ $status -ne 0 ]; then
  echo "on_gpu.sh: $python cannot import torch: $(tail -n 1 <<<"$gpu")" >&2
  exit 2
fi
if [ -z "$gpu" ]; then
  echo "on_gpu.sh: there is no GPU here that torch can use, so nothing was built or run." >&2
  exit 3
fi
for folder in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer; do
  [ -d "$folder" ] && PATH=$PATH:$folder
done
command -v nvcc >/dev/null || { echo "on_gpu.sh: nvcc is neither on PATH nor in /usr/local/cuda/bin." >&2; exit 2; }

mkdir -p "$1"
out=$(cd "$1" && pwd)
summary=$out/summary.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
site=$work/site
failures=0
mkdir "$tree" "$site"

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INDEX=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYFLOWCORE_CUDA=ON CMAKE_ARGS=${CMAKE_ARGS:--DCMAKE_CUDA_ARCHITECTURES=native}
# A GPU test that would be skipped for want of a GPU must fail here.
export PYFLOWCORE_REQUIRE_GPU=1

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# stage NAME BUDGET COMMAND...: at most BUDGET seconds, and no more than are left.
stage() {
  local name=$1 budget=$2 begin=$SECONDS status left=$((deadline - SECONDS))
  local log=$out/$name.log
  shift 2
  [ "$left" -lt "$budget" ] && budget=$left
  if [ "$budget" -lt 10 ]; then
    failures=$((failures + 1))
    say "$name: FAILED, no time was left for it"
    return 1
  fi
  printf '=== %s (at most %d s)\n' "$name" "$budget"
  timeout --kill-after=5 "$budget" "$@" >"$work/log" 2>&1 </dev/null
  status=$?
  tail -c 1000000 "$work/log" >"$log"
  if [ $status -eq 0 ]; then
    say "$name: passed in $((SECONDS - begin)) s"
  else
    failures=$((failures + 1))
    [ $status -eq 124 ] && say "$name: FAILED, its $budget s ran out" || say "$name: FAILED with status $status after $((SECONDS - begin)) s"
    tail -n 15 "$log" | cut -c1-300
  fi
  return $status
}

# In a copy of the sources, so that the checkout stays as it is; the compiled parts go beside the Python files there, so
# that tests and benchmarks import them from the copy whatever folder they start in.
build() {
  tar -C "$root" --exclude=./.venv --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude=./outputs -cf - . | tar -xf - -C "$tree" &&
    "$python" -m pip install --no-build-isolation --no-deps --target "$site" -v "$tree" &&
    cp -r "$site"/pyflowcore/_core*.so "$site/pyflowcore/lib" "$tree/pyflowcore/" &&
    [ -e "$tree/pyflowcore/lib/libpyflowcore_cuda.so" ]
}

info() { "$python" -c 'import json, sys, pyflowcore as pfc
print(pfc.info())
json.dump(pfc.info().as_dict(), open(sys.argv[1], "w"), indent=1, default=str)' "$out/info.json"; }

# The suite in parts side by side: a file stays whole, so that what it shares is made once.
test_all() {
  local parts=8 status=0 part pids=()
  for ((part = 1; part <= parts; part++)); do
    OMP_NUM_THREADS=2 "$python" -m pytest python_tests -q -p no:cacheprovider --shard "$part/$parts" >"$work/part-$part.log" 2>&1 &
    pids+=($!)
  done
  for ((part = 1; part <= parts; part++)); do
    wait "${pids[part - 1]}" || status=1
  done
  cat "$work"/part-*.log
  echo "$parts parts: $(tail -qn 1 "$work"/part-*.log | paste -sd ';')"
  return $status
}

# One process for each entry, so that one that fails or hangs costs its own figures alone. Compiling a baseline takes
# longer than timing it, so torch.compile stands beside one case of an operator, not beside each.
measure() {
  local name=$1
  shift
  timeout --kill-after=5 60 "$python" -m benchmarks run "$@" --device cuda --budget 0.06 --repeats 2 --json "$work/bench-$name.json" && return
  echo "benchmark $name failed"
  return 1
}

bench() {
  local status=0 name
  for name in $("$python" -m benchmarks list | grep -oE '^[a-z]\S*'); do
    local few=()
    # Many kinds of rows: where memory decides, and where the launch does.
    [ "$name" = combine ] && few=(--sizes 64K,64M)
    [ "$name" = guide ] && few=(--sizes 64K,16M)
    [ "$name" = block ] && few=(--sizes 16K,64M)
    [ "$name" = qk_norm_rope ] && few=(--sizes 64K,64M)
    # Whole trajectories: the calls that cost most beside their work, and below, the largest product.
    [ "$name" = engine ] && few=(--sizes 1,4096 --only 'SiLU, float32')
    [ "$name" = solve ] && few=(--sizes 4096)
    [ "$name" = log_prob ] && few=(--sizes 256)
    # torch.compile tunes a large model for minutes: that comparison is a run of its own (benchmarks/README.md).
    [ "$name" = backbones ] && few=(--sizes 1)
    measure "$name" "$name" --without torch.compile "${few[@]}" || status=1
  done
  measure combine-compiled combine --only 'euler, CFG, 16M elements, float32/float32' || status=1
  measure interpolate-compiled interpolate --only 'linear, velocity, x0 given, 16M' || status=1
  measure block-compiled block --only 'gate_residual_norm, 64M elements, bfloat16' || status=1
  measure qk-compiled qk_norm_rope --only '64M elements, heads of 64, bfloat16' || status=1
  measure engine-compiled engine --sizes 4096 --only '4x128 SiLU, float32' || status=1
  measure engine-silu engine --sizes 1M --only '4x128 SiLU, bfloat16' --without torch.compile || status=1
  measure engine-relu engine --sizes 1M --only '4x128 ReLU, bfloat16' --without torch.compile || status=1
  compgen -G "$work/bench-*.json" >/dev/null || return 1
  "$python" - "$out/benchmarks.json" "$work"/bench-*.json <<'PYTHON' || status=1
import json
import sys

parts = [json.load(open(path)) for path in sorted(sys.argv[2:], key=lambda path: "-compiled" in path)]
merged = parts[0]
for part in parts[1:]:
    for kind in ("rows", "skipped"):
        key = lambda row: (row["benchmark"], row["case"], row["threads"], row["arm"])
        present = {key(row) for row in merged[kind]}
        merged[kind] += [row for row in part[kind] if key(row) not in present]
measured = {(row["benchmark"], row["case"], row["threads"], row["arm"]) for row in merged["rows"]}
merged["skipped"] = [
    row for row in merged["skipped"] if (row["benchmark"], row["case"], row["threads"], row["arm"]) not in measured
]
json.dump(merged, open(sys.argv[1], "w"), indent=1)
PYTHON
  return $status
}

# What pyflowcore/proven.json may say once this run is committed: info() reads it.
proven() { "$python" - "$gpu" "$commit" <<'PYTHON'
import json
import sys

import torch

import pyflowcore

names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pyflowcore::"))
kernels = [name.split("::")[1] for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
print("for pyflowcore/proven.json:", json.dumps({"kernels": kernels, "gpu": sys.argv[1], "commit": sys.argv[2]}))
PYTHON
}

sanitize() {
  # Every allocation by itself, or an access past its end lands in a neighbour and is seen by nobody.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 86 \
    "$python" -m pytest python_tests -q -m 'gpu and sanitize' -p no:cacheprovider
}

export -f build info test_all measure bench sanitize
commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
export root python out work tree site

: >"$summary"
say "pyflowcore, commit $commit, on $gpu"
smi=$(nvidia-smi --query-gpu=driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)
say "driver and memory: ${smi:-nvidia-smi says nothing}"
say "torch $("$python" -c 'import torch; print(torch.__version__)'), nvcc $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"

if stage build 150 bash -c build; then
  cd "$tree" || exit 1
  export PYTHONPATH=$tree:$site
  stage info 40 bash -c info
  stage tests 170 bash -c test_all
  tail -n 1 "$out/tests.log" | tee -a "$summary"
  stage benchmarks 210 bash -c bench
  stage memcheck 60 bash -c 'sanitize memcheck'
  stage racecheck 60 bash -c 'sanitize racecheck'
  [ "$failures" -eq 0 ] && proven | tee -a "$summary"
  # Eight files are the limit, and info.json says what this log says.
  cat "$out/info.log" >>"$summary" && rm -f "$out/info.log"
fi
say "$failures stages failed, $SECONDS s in all"
[ "$failures" -eq 0 ]
