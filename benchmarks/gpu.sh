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
# A child process of its own: region-of-interest decoding is reported to crash on some GPUs.
step roi-decode 90 "$python" -m pytest -q -m gpu -k 'gpu_is_close_to_cpu and False' tests/test_loader.py
step whole-decode 90 "$python" -m pytest -q -m gpu -k 'gpu_is_close_to_cpu and True' tests/test_loader.py
step pytest 200 "$python" -m pytest -q -m gpu
step loader-gpu.json 200 "$python" -m qrdali bench loader --json
exit 0
