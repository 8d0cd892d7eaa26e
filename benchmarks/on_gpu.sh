#!/usr/bin/env bash
# All that wants a GPU, in parts: tests, contracts, sanitizer, races. Nothing need be installed.
#
#     benchmarks/on_gpu.sh --list                       parts, each with its limit in seconds
#     benchmarks/on_gpu.sh FOLDER [PART…]               all of them, or some
#     SECONDS_LEFT=570 benchmarks/on_gpu.sh FOLDER call1      a group of at most nine minutes
#
# Groups are in order of worth: what is stale or was never measured first, and what never ran on a
# GPU behind what it might keep from running. A part that fails, or is ended at its limit, does not
# keep the next from running; after SECONDS_LEFT none is begun, and the rest is named.
#
# FOLDER/summary.log says how each part went; FOLDER/results.tar.gz has all logs and results, anew
# after every part. From there they get to where the pages look, those of several calls together:
#
#     python benchmarks/collect.py FOLDER…
#
# The files themselves lie three folders down, from where nothing needs to be brought back.
# Versions there are not ours: what their libraries warn of fails no test.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.namespace PYTHONUNBUFFERED=1
twofold=(python3 -c "from twofold.core.cli import main; main()")
pytest=(env TWOFOLD_EXAMPLES="${TWOFOLD_EXAMPLES:-5}" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
  python3 -m pytest -W default)
untried=tests/test_linear_variants.py::test_hoppers_own_holds_the_contract

# Beyond a tensor's end lies another in torch's cache of memory: memcheck would see nothing.
sanitized=(env TWOFOLD_EXAMPLES=2 PYTORCH_NO_CUDA_MEMORY_CACHING=1
  compute-sanitizer --error-exitcode 9)

declare -A limits commands # of parts, by name
declare -A members         # of groups
groups=()

group() { groups+=("$1"); }

part() { # NAME LIMIT COMMAND…: of the last group; in a command, KEPT/ is the folder of results
  local name=$1 limit=$2
  shift 2
  limits[$name]=$limit commands[$name]=$(printf '%q ' "$@")
  members[${groups[-1]}]+=" $name"
}

group call1
part machine 30 python3 benchmarks/collect.py --machine KEPT/machine.json
part tests 360 "${pytest[@]}" -n auto --dist worksteal --maxfail 20 \
  --deselect tests/test_readme.py --deselect "$untried"
part attention_features 150 python3 benchmarks/attention_variants.py --features \
  --json KEPT/attention_variants.json

group call2
part train_step 420 python3 benchmarks/bench_train_step.py --limit 390 --json KEPT/train_step.json
part inference 110 python3 benchmarks/bench_inference.py --seconds 10 --json KEPT/inference.json

group call3
part race_attention 200 "${twofold[@]}" bench attention attention_decode --seconds 0.2 --limit 170 \
  --json KEPT/bench-attention.json --plots KEPT/attention
part linear_variants 170 python3 benchmarks/linear_variants.py --json KEPT/linear_variants.json
part race_others 160 "${twofold[@]}" bench layer_norm rms_norm activation gated_activation \
  softmax softmax_cross_entropy rotary embedding positional_encoding dropout optimizers linear \
  --seconds 0.1 --limit 130 --json KEPT/bench-others.json --plots KEPT/others

group call4
part attention_kernels 240 python3 benchmarks/attention_variants.py --kernels \
  --json KEPT/attention_variants.json
part attention_tiles 150 python3 benchmarks/attention_variants.py --tiles \
  --json KEPT/attention_variants.json
part hoppers_linear 60 "${pytest[@]}" -x "$untried"
part linear_hopper 90 python3 benchmarks/linear_variants.py --hopper \
  --json KEPT/linear_variants.json

group call5
part verify 180 "${twofold[@]}" verify --examples 30 --json KEPT/verify.json
part lockstep 60 "${twofold[@]}" verify lockstep --json KEPT/lockstep.json
for tool in memcheck racecheck; do
  part "$tool" 150 "${sanitized[@]}" --tool "$tool" \
    python3 -m pytest -x -W default tests/test_attention_hopper.py tests/test_contracts.py \
    tests/test_linear_variants.py -k "keeps_the_contract_of_attention or hoppers_own_holds or \
(every_tile and (layer_norm or rms_norm or attention) and float32)"
done

group call6
for n in 1 2 3; do
  part "attention_steps_$n" 180 python3 benchmarks/attention_steps.py --part "$n" --minutes 2.4 \
    --json KEPT/attention_steps.json
done

group call7
part attention_tuning 200 python3 benchmarks/attention_tuning.py --minutes 2.5 \
  --json KEPT/attention_tuning.json
part attention_tuning_small 130 python3 benchmarks/attention_tuning.py --small --minutes 1.5 \
  --json KEPT/attention_tuning.json
part tile_tuning 200 python3 benchmarks/tile_tuning.py --minutes 2.5 --json KEPT/tile_tuning.json

group call8
for dtype in bfloat16 float16 float32; do
  part "properties_$dtype" 60 "${twofold[@]}" verify properties attention --at batch=1 \
    --at heads=4 --at seqlen_q=4096 --at seqlen_k=4096 --at head_dim=128 --at dtype="$dtype" \
    --json "KEPT/properties-$dtype.json"
  part "properties_decode_$dtype" 60 "${twofold[@]}" verify properties attention_decode \
    --at batch=2 --at heads=16 --at groups=4 --at capacity=8192 --at page_size=16 \
    --at head_dim=128 --at dtype="$dtype" --json "KEPT/properties-decode-$dtype.json"
done
part peers 180 "${twofold[@]}" verify peers --json KEPT/peers.json

group call9
for precision in float32 bfloat16; do
  part "train_$precision" 120 "${twofold[@]}" train --side triton --precision "$precision" \
    --out "SCRATCH/$precision" --json "KEPT/train-movie-$precision.json"
done
part growth 300 "${twofold[@]}" bench --growth --seconds 0.3 --limit 270 \
  --json KEPT/growth.json --plots KEPT/growth

group call10
for tool in memcheck racecheck; do
  part "${tool}_others" 270 "${sanitized[@]}" --tool "$tool" \
    python3 -m pytest -x -W default tests/test_contracts.py -k "every_tile and float32 and \
(linear or softmax or embedding or pooling or optimizers or rotary or activation or merge)"
done

list() {
  local name each sum
  for name in "${groups[@]}"; do
    sum=0
    for each in ${members[$name]}; do sum=$((sum + limits[$each])); done
    echo "$name $sum"
    for each in ${members[$name]}; do echo "  $each ${limits[$each]}"; done
  done
}

if [[ ${1:-} == --list ]]; then
  list
  exit
fi
out=$(realpath -m "${1:?name a folder for logs and results, or --list}")
shift
asked=()
for name in "${@:-"${groups[@]}"}"; do
  if [[ -z ${members[$name]:-${limits[$name]:-}} ]]; then
    echo "no part $name; there are:" >&2
    list >&2
    exit 2
  fi
  asked+=(${members[$name]:-$name})
done

kept=$out/loose/by/part scratch=$(mktemp -d)
mkdir -p "$kept"
trap 'rm -rf "$scratch"' EXIT

run() { # NAME: run a part, keep its log, say how it went
  local name=$1 start=$SECONDS limit=${limits[$1]} status
  if [[ -n ${SECONDS_LEFT:-} ]]; then
    local left=$((SECONDS_LEFT - SECONDS))
    if ((left <= 0)); then
      echo "$name: not begun, no time left" | tee -a "$out/summary.log"
      return
    fi
    limit=$((left < limit ? left : limit))
  fi
  local command=${commands[$name]//KEPT/$(printf %q "$kept")}
  command=${command//SCRATCH/$(printf %q "$scratch")}
  eval "timeout --signal INT --kill-after 10 $limit $command" >"$kept/$name.log" 2>&1
  status=$?
  echo "$name: status $status, $((SECONDS - start)) s" | tee -a "$out/summary.log"
}

pack() { # all that there is so far, put in place only when it is whole
  cp "$out/summary.log" "$kept/" 2>/dev/null
  tar -czf "$scratch/results.tar.gz" -C "$kept" . && cp "$scratch/results.tar.gz" "$out/.whole" &&
    mv "$out/.whole" "$out/results.tar.gz"
}

timeout 30 nvidia-smi >"$kept/gpu.log" 2>&1
for name in "${asked[@]}"; do
  run "$name"
  pack
done
