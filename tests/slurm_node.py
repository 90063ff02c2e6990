"""A Slurm cluster of this machine alone, for tests: controller, daemon and munge, as root."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
CPUS = 2  # of the node by its configuration, whatever the machine has
# cred_expire: seconds after which a requeued job may begin again, 120 by default.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
KillWait=30
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SwitchType=switch/none
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=2-00:00:00 State=UP
"""


def hindrance() -> str:
    """Returns why no Slurm can run here, "" if it can."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"{missing[0]} is not installed: tests/slurm.sh does it"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def cluster(folder: Path, ports: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Runs a cluster whose files are in `folder`; yields the environment in which its commands work."""
    folder.chmod(0o755)
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    values = {"folder": folder, "host": os.uname().nodename, "cpus": CPUS}
    values |= {"controller": ports[0], "daemon": ports[1]}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    # --force: folders above, as /tmp, may be writable by all.
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    munged += [f"--seed-file={folder}/munged.seed"]
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        with open(folder / "daemons.log", "ab") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    try:
        start(munged)
        _until(lambda: (folder / "munge.socket").exists(), folder)
        start(["slurmctld", "-D"])
        start(["slurmd", "-D", "-N", values["host"]])
        _until(lambda: "idle" in said(["sinfo", "-h", "-o", "%T"], environment), folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--full", "--me"], env=environment, capture_output=True)
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True)
        time.sleep(1)
        for process in reversed(started):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def said(command: list[str], environment: dict[str, str]) -> str:
    """Returns what a command of Slurm prints, errors too."""
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    ).stdout


def _until(is_so, folder: Path) -> None:
    end = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > end:
            logs = (folder / name for name in ("daemons.log", "slurmctld.log", "slurmd.log"))
            raise RuntimeError("\n".join(log.read_text()[-2000:] for log in logs if log.exists()))
        time.sleep(0.2)
