"""The engines and devices that one test body runs on: the CPU, and a GPU where there is one."""

import pytest
import torch

from qrdali.pipelines.engine import Engine

ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))

HOST = pytest.param(Engine(threads=2, depth=2), id="host")
GRAPH = pytest.param(Engine(threads=2, depth=2, whole_graph=True), id="graph")
# A GPU's path on a CPU: whole images are decoded, then everything else is done in the graph.
WHOLE = pytest.param(Engine(threads=2, depth=2, whole_graph=True, decode="whole"), id="whole")
GPU = pytest.param(Engine(0, 2, 2), id="gpu", marks=ON_GPU)

DEVICES = (
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda", 0), id="cuda", marks=ON_GPU),
)
