"""The engine that a job gets: threads, and the way of decoding on each device."""

import pytest
import torch

from qrdali.distributed import ProcessGroup
from qrdali.pipelines import engine as chosen
from qrdali.pipelines.engine import Engine, describe_decoding, engine_for, engine_of
from qrdali.system.device import autocast_for
from qrdali.system.machine import Processors

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "usable", "threads", "sharing", "host", "dali"),
    [
        (CPU, 2, None, 1, 2, 2),
        (CPU, 2, 0, 1, 2, 2),
        (CPU, 2, 5, 1, 5, 5),
        (CPU, 64, None, 1, 64, 64),
        (CPU, 64, None, 8, 8, 8),
        (CPU, 1, None, 8, 1, 1),
        (GPU, 16, None, 1, 16, 16),
        (GPU, 17, None, 1, 17, 16),
        (GPU, 64, None, 1, 64, 16),
        (GPU, 64, None, 8, 8, 8),
        (GPU, 64, 0, 1, 64, 16),
        (GPU, 64, 17, 1, 17, 17),
    ],
)
def test_threads_are_those_the_process_may_use_and_sixteen_decode_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    usable: int,
    threads: int | None,
    sharing: int,
    host: int,
    dali: int,
) -> None:
    monkeypatch.setattr(chosen, "processors", lambda: Processors(64, 64, float(usable)))
    engine = engine_for(device, threads, sharing)
    assert (engine.threads, engine.num_dali_threads) == (host, dali)


def test_processes_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "processors", lambda: Processors(64, 64, None))
    monkeypatch.setattr(ProcessGroup, "processes_on_these_cpus", lambda group: 4)
    assert engine_of(CPU, None, ProcessGroup()).threads == 16


@pytest.mark.parametrize(
    ("engine", "device", "whole", "words"),
    [
        (Engine(), "cpu", False, "regions decoded on the CPU"),
        (Engine(whole_graph=True), "cpu", False, "regions decoded on the CPU"),
        (Engine(decode="whole"), "cpu", True, "whole images decoded on the CPU"),
        (engine_for(GPU, 2), "mixed", True, "whole images decoded on the GPU"),
        (Engine(1, decode="windows"), "mixed", False, "regions decoded on the GPU"),
    ],
)
def test_a_gpu_decodes_whole_images_unless_it_is_asked_otherwise(
    engine: Engine, device: str, whole: bool, words: str
) -> None:
    options = engine.decode_options
    assert (options.device, options.whole) == (device, whole)
    assert describe_decoding(engine) == words


def test_choosing_an_engine_starts_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.system import subprocess_trial

    monkeypatch.setattr(subprocess_trial.subprocess, "Popen", None)
    assert engine_for(GPU, None).device_id == 1


@pytest.mark.parametrize(("has_bf16", "scaled"), [(True, False), (False, True)])
def test_cards_that_emulate_bf16_train_in_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, scaled: bool
) -> None:
    # As torch does: an older card has bf16 only by emulation, which is counted in unless told otherwise.
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or has_bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert autocast_for("auto", GPU)[1] == scaled
    assert autocast_for("auto", CPU)[1] is False
