"""What --slurm says, and what is taken from a cluster's own words. No Slurm is needed."""

import pytest

from qrdali.errors import InputError
from qrdali.experiment.tasks import Task
from qrdali.workflows.slurm import dependencies, worker_count
from qrdali.workflows.slurm_cluster import JobSize, Partition, QueuedJob, jobs_in, partitions_in, size_for
from qrdali.workflows.slurm_options import (
    SlurmOptions,
    minutes_of,
    parsed,
    signal_seconds,
    time_text,
    walltime,
)


def test_keys_and_values_are_read() -> None:
    assert parsed("partition=gpu,time=24:00:00,parallel=16") == SlurmOptions("gpu", 1440, 16)
    text = "Per_Task=yes, gpus=2,cpus=8,mem=32G,max-num-timeout=0,exclude=n[1,3],n7,account=a-b"
    assert parsed(text) == SlurmOptions(
        per_task=True, gpus=2, cpus=8, mem="32G", max_num_timeout=0, exclude="n[1,3],n7", account="a-b"
    )
    assert parsed("partition=a,b,qos=long").partition == "a,b"
    assert parsed("") == SlurmOptions()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("1", 1),
        ("90", 90),
        ("0:30", 1),
        ("90:01", 91),
        ("24:00:00", 1440),
        ("100:00:00", 6000),
        ("1-12", 2160),
        ("2-00:30", 2910),
        ("1-00:00:01", 1441),
    ],
)
def test_times_of_slurm_are_minutes_rounded_up(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:00", "1:60", "1:00:60", "1-24", "-1", "1h", "24:", "1:2:3:4", "infinite", "٣", "9" * 99],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time of Slurm"):
        minutes_of(text)
    with pytest.raises(
        InputError, match=r"--slurm time=.*: give the longest time of a job as minutes, HH:MM"
    ):
        parsed(f"time={text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partion=gpu", "--slurm partion=…: there is no such key; near it: partition"),
        ("parallel=0", "--slurm parallel=0: give how many workers, from 1 to 1024"),
        ("parallel=many", "parallel=many: give how many"),
        ("parallel=2,parallel=3", "parallel=…: it is given twice"),
        ("gpu", "--slurm …,gpu,…: give keys with their values"),
        ("time=60,24:00:00", "--slurm …,24:00:00,…: give keys"),
        ("per-task=maybe", "per-task=maybe: give yes or no"),
        ("per-task=yes,parallel=2", "give one of them"),
        ("mem=lots", "mem=lots: give the memory of one job, as in 32G"),
        ("partition=a b\n#SBATCH --wrap", r"partition=a b\?#SBATCH --wrap: give a name"),
        ("account=--uid", "account=--uid: give a name"),
        ("qos=$(id)", r"qos=\$\(id\): give a name"),
        ("time=400-00", "at most a year"),
        ("partition=" + "x" * 9999, "give a name"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        parsed(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_times_are_shown_as_sbatch_takes_them() -> None:
    assert [time_text(minutes) for minutes in (1, 90, 1439, 1440, 2165)] == [
        "00:01:00",
        "01:30:00",
        "23:59:00",
        "1-00:00:00",
        "1-12:05:00",
    ]


def test_a_walltime_is_the_estimate_with_a_margin_within_bounds() -> None:
    assert walltime(None, 600) == 600  # unknown: as long as a job may take
    assert walltime(0.0, 600) == 20
    assert walltime(3600.0, 600) == 100  # 60 · 1.5 + 10
    assert walltime(3601.0, 600) == 105
    assert walltime(1e9, 600) == 600
    assert walltime(float("inf"), 600) == 600
    assert walltime(0.0, 5) == 5


def test_a_job_is_asked_to_save_two_minutes_before_its_end_or_a_quarter_of_a_short_one() -> None:
    assert [signal_seconds(None, minutes) for minutes in (1, 7, 8, 1440)] == [15, 105, 120, 120]
    assert signal_seconds(300, 1440) == 300


TASKS = [
    Task("data"),
    Task("train", "n/shared", ("data",)),
    Task("train", "n/baseline", ("data", "train n/shared")),
    Task("evaluate", "n/baseline", ("data", "train n/baseline")),
    Task("report"),
]


def test_tasks_wait_for_their_undone_needs_and_the_report_for_all() -> None:
    assert dependencies(TASKS) == {
        "data": (),
        "train n/shared": ("data",),
        "train n/baseline": ("data", "train n/shared"),
        "evaluate n/baseline": ("data", "train n/baseline"),
        "report": ("data", "train n/shared", "train n/baseline", "evaluate n/baseline"),
    }
    assert dependencies(TASKS[2:]) == {
        "train n/baseline": (),
        "evaluate n/baseline": ("train n/baseline",),
        "report": ("train n/baseline", "evaluate n/baseline"),
    }
    assert dependencies(TASKS[4:]) == {"report": ()}
    assert list(dependencies(TASKS[3:1:-1])) == ["train n/baseline", "evaluate n/baseline"]


def test_there_are_no_more_workers_than_tasks() -> None:
    assert worker_count(TASKS, SlurmOptions(parallel=16)) == 4
    assert worker_count(TASKS, SlurmOptions(parallel=2)) == 2
    assert worker_count(TASKS[4:], SlurmOptions(parallel=2)) == 1


SINFO = """\
cpu*|64|(null)|1-00:00:00
gpu|96|gpu:h100:4(S:0-1)|2-00:00:00
gpu|128|gpu:a100:8(S:0-1)|2-00:00:00
old|32+|gpu:2,shard:8|infinite
nonsense
"""


def test_a_job_has_a_gpu_and_its_share_of_the_smallest_node() -> None:
    cpu, gpu, old = partitions_in(SINFO)
    assert cpu == Partition("cpu", True, 64, 0, 1440)
    assert gpu == Partition("gpu", False, 128, 8, 2880)
    assert old == Partition("old", False, 32, 2, None)
    assert size_for(SlurmOptions(), gpu, "cuda") == JobSize(16, 1, 1440)
    assert size_for(SlurmOptions(gpus=4), gpu, None) == JobSize(64, 4, 1440)
    assert size_for(SlurmOptions(gpus=16), gpu, None).cpus == 128
    assert size_for(SlurmOptions(cpus=3), gpu, None) == JobSize(3, 1, 1440)
    assert size_for(SlurmOptions(minutes=60), gpu, "cpu") == JobSize(128, 0, 60)
    assert size_for(SlurmOptions(), cpu, None) == JobSize(64, 0, 1440)
    assert size_for(SlurmOptions(minutes=9000), old, None).minutes == 9000
    with pytest.raises(InputError, match=r"time=2-00:01:00: partition gpu allows 2-00:00:00 at most"):
        size_for(SlurmOptions(minutes=2881), gpu, None)


def test_jobs_of_squeue_are_read() -> None:
    text = "12_0|qrdali-x|RUNNING|1:02|n1\n13|qrdali-x|PENDING|0:00|(Priority|Held)\nnonsense\n"
    assert jobs_in(text) == (
        QueuedJob("12_0", "qrdali-x", "RUNNING", "1:02", "n1"),
        QueuedJob("13", "qrdali-x", "PENDING", "0:00", "(Priority|Held)"),
    )
