"""The machine: device, precision, deterministic algorithms, versions, energy, limits, subprocesses."""
