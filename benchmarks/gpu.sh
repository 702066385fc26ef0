#!/usr/bin/env bash
# Every check and measurement of docs/gpu.md, on a bare machine that has JAX with a GPU, in less than 8 minutes:
#
#     benchmarks/gpu.sh [OUT]
#
# Each step has a time limit and a log, OUT/STEP.log. The most important steps come first; steps for which no time is
# left are reported as not measured. The table is OUT/table.md, its numbers OUT/table.json.
#
#     NANO_EGG=PATH/run.py    the peer to measure beside it, with NANO_PYTHON, an interpreter that has its packages
#     WHEELS=DIR              where the package's dependencies are, if there is no network
#     DRY=1                   all steps on a CPU: tiny sizes, the kernels in their interpreter, nothing installed
set -u
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${1:-gpu-results}" && cd "${1:-gpu-results}" && pwd)
TOTAL=${TOTAL:-465} SLACK=1 DRY=${DRY:-} PYTHON=${PYTHON:-python3}
rm -f "$OUT"/*.log "$OUT"/*.json "$OUT"/steps.txt
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR="$OUT/compiled"
if [ "$DRY" ]; then
    TOTAL=3600 SLACK=10
    export JAX_PLATFORMS=cpu INTLM_INTERPRET=1
    small=(--eggroll.population 64 --model.num_layers 1 --train.tokens_per_update 4)
    narrow=(--model.hidden_size 16 --model.feed_forward_size 32 "${small[@]}")
    wide=(--model.hidden_size 264 --model.feed_forward_size 32 "${small[@]}" --eggroll.population 4)
    peer=(--config "$OUT/dry.toml" --updates 7)
    tests=(tests/conformance/test_engines.py -k "gpu and targets and 8")
else
    export JAX_PLATFORMS=cuda
    narrow=()
    wide=(--model.hidden_size 1024 --model.feed_forward_size 4096 --eggroll.population 8192)
    peer=(--config benchmarks/gpu.toml --updates 21)
    tests=(tests/conformance/test_engines.py tests/conformance/test_golden.py tests/population/test_gpu.py -k gpu)
fi

step() { # name, seconds at most, command
    local name=$1 limit=$2 left=$((TOTAL - SECONDS)) began=$SECONDS status
    shift 2
    limit=$((limit * SLACK))
    [ "$limit" -lt "$left" ] || limit=$left
    if [ "$limit" -le 0 ]; then
        status=124
    else
        timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
        status=$?
    fi
    echo "$name $status $((SECONDS - began))" | tee -a "$OUT/steps.txt"
    return $status
}

bench() { # name, seconds at most, engine, keys
    local name=$1 limit=$2 engine=$3
    shift 3
    step "$name" "$limit" "$PYTHON" -c '
import sys
from intlm.cli import main
with open(sys.argv[1], "w") as sys.stdout:
    status = main(sys.argv[2:])
sys.exit(status)' "$OUT/$name.json" bench benchmarks/gpu.toml --data.train "$OUT/text.txt" \
        --data.prepared "$OUT/prepared" --engine "$engine" --rounds 1 --json "$@"
}

install() {
    "$PYTHON" -m venv --system-site-packages "$OUT/venv" &&
        "$OUT/venv/bin/python" -m pip install -q --no-build-isolation ${WHEELS:+--no-index --find-links "$WHEELS"} \
            -e . pytest hypothesis
}
export -f install
export OUT PYTHON WHEELS="${WHEELS:-}"

if [ ! "$DRY" ]; then
    step install 90 bash -c install && PYTHON="$OUT/venv/bin/python"
fi
step machine 20 bash -c "nvidia-smi; $PYTHON -c 'import jax; print(jax.__version__, jax.devices())'"
step text 20 "$PYTHON" benchmarks/gpu_steps.py text "$OUT"
step conformance 130 "$PYTHON" -m pytest -q -x "${tests[@]}"
bench gpu-256 75 gpu "${narrow[@]}"
step resume 60 "$PYTHON" benchmarks/gpu_steps.py resume "$OUT"
step products 45 env -u JAX_COMPILATION_CACHE_DIR XLA_FLAGS="--xla_dump_to=$OUT/dump" "$PYTHON" benchmarks/gpu_steps.py products "$OUT"
bench gpu-1024 60 gpu "${wide[@]}"
bench xla-256 60 xla "${narrow[@]}"
if [ "${NANO_EGG:-}" ]; then
    step peer 120 "$PYTHON" benchmarks/throughput.py --text "$OUT/text.txt" --engine gpu --rounds 1 "${peer[@]}" \
        --peer "$NANO_EGG" --peer-python "${NANO_PYTHON:-$PYTHON}"
fi
"$PYTHON" benchmarks/gpu_steps.py table "$OUT"
