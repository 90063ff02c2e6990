"""Counts every network of timm and torchvision and writes qrdali/network_costs.tsv: a quarter of an hour.

    python benchmarks/network_costs.py [--part 0/2 --out rows.tsv]

Run it after `make upgrade` has moved either library: the rows of another version are not used.
"""

import argparse
import csv
from pathlib import Path

import timm
import torchvision

from qrdali import models, network_costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="which of how many parts of the networks: 0/2, 1/2")
    parser.add_argument("--out", type=Path, default=Path(models.__file__).with_name(network_costs.TABLE))
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    names = [
        *(("timm", name) for name in sorted(timm.list_models())),
        *(("torchvision", name) for name in sorted(of_torchvision)),
    ]
    with options.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(network_costs.FIELDS)
        for library, name in names[part::parts]:
            counted = models.count(f"{library}/{name}")
            if counted.parameters is None:
                print(f"{library}/{name} cannot be counted", flush=True)
                continue
            multiply_adds = "" if counted.gmacs is None else round(counted.gmacs * 1e9)
            version = network_costs.installed_version(library)
            table.writerow([library, version, name, counted.parameters, multiply_adds, counted.input_size])
            file.flush()


if __name__ == "__main__":
    main()
