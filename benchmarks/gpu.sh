#!/usr/bin/env bash
# What only a GPU can show, in at most eight minutes; on a GPU host, from the repository's root:
#
#     OUT=gpu-results benchmarks/gpu.sh
#
# Each step has its own limit of seconds, and its lines of JSON come into $OUT as they are measured, so that a step
# that is cut off leaves what it had. The tests for a GPU are not among them: `pytest -m gpu` runs those.
# QRDALI_GPU_DRY=1 runs every step on the CPU with small figures, to show that the script itself has no fault.
set -u
out=${OUT:-gpu-results}; mkdir -p "$out"
python=${PYTHON:-python3}
[ -e .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
dry=${QRDALI_GPU_DRY:-0}
models="squeezenet1_1 efficientnet_b3 resnet152"; mepi_model=efficientnet_b3
[ "$dry" = 0 ] || { models="test_resnet"; mepi_model=test_resnet; }
failed=0
step() {
  local name=$1 limit=$2 begun=$SECONDS status; shift 2
  [ "$dry" = 0 ] || limit=300
  timeout --kill-after 5 "$limit" "$@" > "$out/$name" 2> "$out/$name.log"; status=$?
  case $status in 0) ;; 124|137) failed=1; status="cut off after $limit s" ;; *) failed=1; status="exit $status, see $out/$name.log" ;; esac
  echo "$name: $status, $((SECONDS - begun)) s"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/gpu.csv" 2>&1 || echo "nvidia-smi: see $out/gpu.csv"
step doctor.json 30 "$python" -m qrdali doctor --json
step data.jsonl 42 "$python" benchmarks/gpu.py data "$out/data"
step loader.jsonl 68 "$python" benchmarks/gpu.py loader "$out/data" --seconds 48
# Apart, because there are reports of crashes in it.
step hardware.jsonl 35 "$python" benchmarks/gpu.py hardware "$out/data" --seconds 15
for model in $models; do
  step "train-$model.jsonl" 60 "$python" benchmarks/gpu.py train "$out/data" --model "$model" --seconds 38
done
step compiled.jsonl 50 "$python" benchmarks/gpu.py compiled "$out/data" --model "${models%% *}" --seconds 25
step "mepi-$mepi_model.jsonl" 75 "$python" benchmarks/gpu.py mepi "$out/data" --model "$mepi_model"
echo "results are in $out; $SECONDS s in all"
exit $failed
