"""The machine: device, precision, deterministic algorithms, versions, energy, limits, and trials in subprocesses."""
