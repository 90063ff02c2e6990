#!/bin/sh
# Slurm and munge for the tests of `reproduce --slurm`. Where they cannot be installed those tests skip and say so.
set -eu
if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && command -v sbatch >/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1 && exit 0
fi
echo "no slurmctld, slurmd and munged here, and they could not be installed: the tests of a Slurm cluster will skip" >&2
