#!/usr/bin/env bash
# On a GPU host, from the repository's root: what only a GPU can show. Each step has its own limit and log under $OUT.
set -u
out=${OUT:-gpu-results}; mkdir -p "$out"
python=${PYTHON:-python3}
[ -e .venv/bin/python ] && python=.venv/bin/python
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/gpu.csv" 2>&1
step() {
  local name=$1 limit=$2; shift 2
  timeout "$limit" "$@" > "$out/$name" 2> "$out/$name.log"
  echo "$name: exit $?"
}
step doctor.json 180 "$python" -m qrdali doctor --json
# What is reported to crash on some GPUs (decoding windows of images) is tried in a child process there.
step pytest 400 "$python" -m pytest -q -m gpu --ignore tests/training/test_killed.py
# Two runs with --deterministic, and one that is killed, are the same bit for bit.
step deterministic 600 "$python" -m pytest -q -m gpu --timeout 300 tests/training/test_killed.py
step loader-gpu.json 200 "$python" -m qrdali bench loader --json
# At HumaNet's size: 20 classes, 25,000 pictures, generated once.
[ -e /tmp/humanet/data/classes.tsv ] || { step generate 400 "$python" -m qrdali data shapes /tmp/humanet/images --train 1250 --val 25 --test 50
  step index 200 "$python" -m qrdali data index /tmp/humanet/images --out /tmp/humanet/data --no-verify; }
for model in squeezenet1_1 efficientnet_b3 resnet152; do
  step "train-$model-gpu.json" "${LIMIT:-400}" "$python" -m qrdali bench train --data /tmp/humanet/data --model "$model" \
    --images "${IMAGES:-25000}" --rounds 1 --json
done
for model in squeezenet1_1 efficientnet_b3 resnet152; do
  step "mepi-$model-gpu.json" "${LIMIT:-400}" "$python" -m qrdali bench mepi --data /tmp/humanet/data --model "$model" \
    --images "${MEPI_IMAGES:-500}" --naive-images 4 --json
done
exit 0
