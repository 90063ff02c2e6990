"""Has a pool's thread make reduced images of CUDA tensors over the stand-in driver: prints what happens.

Run by test_cuda_threads.py, with the folder of the stand-in's libcuda.so.1 in LD_LIBRARY_PATH. Arguments: a
data folder, the GPU, and whether the reducer has a stream of its own. There is no GPU and no CUDA runtime, so
torch's streams are replaced by streams of the stand-in, and a pipeline stops once DALI has taken its inputs.
"""

import ctypes
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from nvidia.dali.tensors import TensorGPU, TensorListGPU

from qrdali.data.index import Dataset
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import GraphImageReducer
from qrdali.reduction.quality import ReductionParams

DRIVER = ctypes.CDLL("libcuda.so.1")
HEIGHT, WIDTH = 72, 96


class Stream(NamedTuple):
    """Stands for torch.cuda.Stream."""

    cuda_stream: int
    device_id: int


OF_THREAD = threading.local()  # stream: the thread's current one


def new_stream(device_id: int) -> Stream:
    """Creates a stream as torch does: in the primary context of its GPU, whatever is current."""
    context, handle = ctypes.c_void_p(), ctypes.c_void_p()
    assert not DRIVER.cuDevicePrimaryCtxRetain(ctypes.byref(context), device_id)
    assert not DRIVER.cuCtxPushCurrent(context)
    assert not DRIVER.cuStreamCreate(ctypes.byref(handle), 1)
    assert not DRIVER.cuCtxPopCurrent(None)
    assert handle.value
    return Stream(handle.value, device_id)


def current_stream(device_id: int = 0) -> Stream:
    """Returns the thread's current stream: at first the default one, of GPU 0 unless another is named."""
    return getattr(OF_THREAD, "stream", Stream(0, device_id))


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    before, OF_THREAD.stream = current_stream(), stream
    yield
    OF_THREAD.stream = before


class Tensor:
    """Stands for torch.Tensor on a GPU, which DALI knows by the names of its class and module."""

    shape = (HEIGHT, WIDTH, 3)

    def __init__(self, device_id: int) -> None:
        self.device = torch.device("cuda", device_id)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": "|u1", "data": (1 << 40, False), "version": 3}


Tensor.__module__ = "torch"


@pipeline_def(batch_size=2, num_threads=1, device_id=None)
def anything() -> Any:
    return fn.external_source(name="anything")


BELOW = anything()
BELOW.build()


class Binding:
    """Hands GPU tensors to DALI's own binding, which a pipeline without a GPU has too; drops the rest."""

    def SetExternalTensorInput(self, name: str, data: list[Any], *rest: Any) -> None:
        if isinstance(data[0], TensorGPU):
            BELOW._pipe.SetExternalTensorInput(name, data, *rest)

    def SetExternalTLInput(self, name: str, data: Any, *rest: Any) -> None:
        assert not isinstance(data, TensorListGPU)

    def Shutdown(self) -> None:
        pass


def build(self: Any) -> None:
    """Builds the Python half of a pipeline."""
    if not self._py_graph_built:
        self._build_graph()
        self._pipe = Binding()


def run(self: Any) -> None:
    """Feeds a pipeline's inputs as DALI does."""
    self.build()
    self._run_input_callbacks()


def main(data: str, device_id: int, has_stream: bool) -> None:
    replaced = {"Stream": new_stream, "current_stream": current_stream, "stream": on_stream}
    for name, stand_in in replaced.items():
        setattr(torch.cuda, name, stand_in)
    Pipeline.build, Pipeline.run = build, run
    context = ctypes.c_void_p()  # the main thread has a context, as once torch has worked there
    assert not DRIVER.cuDevicePrimaryCtxRetain(ctypes.byref(context), device_id)
    assert not DRIVER.cuCtxSetCurrent(context)
    pre = Preprocessing(32, "whole", 1, "bilinear", (0,) * 3, (1,) * 3)
    reducer = GraphImageReducer(Dataset.open(Path(data)).index("train"), pre, Engine(device_id))
    if not has_stream:
        reducer._stream = None
        reducer._on_own_stream = lambda: on_stream(Stream(0, 0))  # type: ignore[method-assign]
    window = np.array([[0, 0, HEIGHT, WIDTH]] * 2, np.int32)
    params = ReductionParams(window, window[:, 2:], np.ones(2, np.int32))
    pushes = (ctypes.c_int * 2).in_dll(DRIVER, "stand_in_pushes")
    pushes[:] = [0, 0]
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(reducer.reduced_images, [Tensor(device_id)] * 2, params).exception()
    print(json.dumps({"error": str(error), "pushes": list(pushes)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "own")
