"""The training benchmark as JSON: `python benchmarks/train.py > benchmarks/results/train-HOST.json`."""

import subprocess
import sys

if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "qrdali", "bench", "train", "--json", *sys.argv[1:]]))
