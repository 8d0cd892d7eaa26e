#!/usr/bin/env bash
# All that wants a GPU, in order of worth: tests, contracts, sanitizer, races. The package need not be
# installed. Logs and results go to a folder; a part that fails does not keep the next from running.
# Versions there are not ours: what their libraries warn of fails no test.
#
#     benchmarks/on_gpu.sh FOLDER
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?name a folder for logs and results}")
mkdir -p "$out"
export PYTHONPATH=.namespace PYTHONUNBUFFERED=1
twofold=(python3 -c "from twofold.core.cli import main; main()")

part() { # NAME COMMAND…: run, keep the log, say how it went
  local name=$1 start=$SECONDS
  shift
  "$@" >"$out/$name.log" 2>&1
  echo "$name: status $?, $((SECONDS - start)) s" | tee -a "$out/summary.log"
}

nvidia-smi >"$out/gpu.log" 2>&1
part tests env TWOFOLD_EXAMPLES="${TWOFOLD_EXAMPLES:-5}" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
  python3 -m pytest -n auto --dist worksteal --maxfail 20 -W default --deselect tests/test_readme.py
part verify "${twofold[@]}" verify --examples 30 --json "$out/verify.json"
part lockstep "${twofold[@]}" verify lockstep --json "$out/lockstep.json"
for tool in memcheck racecheck; do
  part "$tool" env TWOFOLD_EXAMPLES=2 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    python3 -m pytest -x -W default tests/test_attention_hopper.py tests/test_linear_variants.py \
    tests/test_contracts.py -k "keeps_the_contract_of_attention or hoppers_own_holds or (every_tile and (layer_norm or rms_norm or attention) and float32)"
done
for dtype in bfloat16 float16 float32; do
  part "properties_$dtype" "${twofold[@]}" verify properties attention --at batch=2 --at heads=16 \
    --at seqlen_q=4096 --at seqlen_k=4096 --at head_dim=128 --at dtype="$dtype" \
    --json "$out/properties-$dtype.json"
  part "properties_decode_$dtype" "${twofold[@]}" verify properties attention_decode --at batch=4 \
    --at heads=32 --at groups=4 --at capacity=8192 --at page_size=16 --at head_dim=128 \
    --at dtype="$dtype" --json "$out/properties-decode-$dtype.json"
done
part peers "${twofold[@]}" verify peers --json "$out/peers.json"
part attention_variants timeout 530 python3 benchmarks/attention_variants.py --kernels --tiles --features \
  --json "$out/attention-variants.json"
for shapes in "" --small; do
  part "attention_tuning$shapes" timeout 530 python3 benchmarks/attention_tuning.py $shapes \
    --json "$out/attention-tuning$shapes.json"
done
part race_attention timeout 530 "${twofold[@]}" bench attention attention_decode --seconds 0.3 --limit 450 \
  --json "$out/bench-attention.json" --plots "$out/attention"
for n in 1 2 3; do
  part "attention_steps_$n" timeout 570 python3 benchmarks/attention_steps.py --part "$n" \
    --json "$out/attention-steps.json"
done
part tile_tuning timeout 530 python3 benchmarks/tile_tuning.py --json "$out/tile-tuning.json"
part linear_variants timeout 530 python3 benchmarks/linear_variants.py --json "$out/linear-variants.json"
part race_others timeout 530 "${twofold[@]}" bench layer_norm rms_norm activation gated_activation softmax softmax_cross_entropy \
  rotary embedding positional_encoding dropout optimizers linear --seconds 0.3 --limit 450 \
  --json "$out/bench-others.json" --plots "$out/others"
part growth timeout 530 "${twofold[@]}" bench --growth --seconds 0.3 --json "$out/growth.json" \
  --plots "$out/growth"
part train "${twofold[@]}" train --side triton --out "$out/run" --json "$out/train.json"
part train_bfloat16 "${twofold[@]}" train --side triton --precision bfloat16 --out "$out/run-bfloat16" \
  --json "$out/train-bfloat16.json"
part train_step timeout 530 python3 benchmarks/bench_train_step.py --json "$out/train-step.json"
part inference timeout 530 python3 benchmarks/bench_inference.py --json "$out/inference.json"
