"""The loader benchmark as JSON: `python benchmarks/loader.py > benchmarks/results/loader-HOST.json`."""

import subprocess
import sys

if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "qrdali", "bench", "loader", "--json", *sys.argv[1:]]))
