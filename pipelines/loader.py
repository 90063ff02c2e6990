"""The loader: one DALI pipeline per split, one plan per epoch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali.plugin.pytorch import feed_ndarray

from qrdali.batch import Ask, Batch, Shown
from qrdali.data.index import Index
from qrdali.data.scan import examine
from qrdali.errors import RunError, printable
from qrdali.models import Preprocessing
from qrdali.pipelines.graphs import Engine, candidates, network_input
from qrdali.pipelines.source import Source, asked_arrays
from qrdali.plan import Plan


class DaliLoader:
    """Implements `qrdali.batch.Loader` for one split. `batch_size` is the largest batch a plan may ask for."""

    def __init__(self, index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> None:
        self._index, self._preprocessing, self._batch_size, self._engine = index, preprocessing, batch_size, engine
        self._source = Source(index, preprocessing.fit, preprocessing.crop_share, keep=engine.depth + 3)
        self._pipe: Any = None
        self._clean = True  # whether the last epoch was read to its end

    def epoch(self, plan: Plan) -> Iterator[Batch]:
        """See `Loader.epoch`. A second call abandons an epoch that was not read to its end."""
        if plan.samples != len(self._index):
            raise ValueError(f"the plan has {plan.samples} samples, {self._index.file} has {len(self._index)}")
        if self._pipe is None:
            self._pipe = network_input(self._source, self._engine, self._batch_size, self._preprocessing)
        elif not self._clean:
            self._drain()
        # The plan first, then the reset: the pipeline reads ahead from the moment it is reset.
        self._source.set(plan)
        self._pipe.reset()
        self._clean = False
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        while True:
            try:
                images, labels, samples = self._pipe.run()
            except StopIteration:
                self._clean = True
                return
            except RuntimeError as error:
                self._pipe, self._clean = None, True  # DALI's pipelines do not survive an error
                raise RunError(self._explain(error)) from None
            # HWC in memory seen as CHW is torch's channels_last: no transposition anywhere.
            yield Batch(self._tensor(images).permute(0, 3, 1, 2), self._tensor(labels), self._tensor(samples))

    def candidates(self, asked: Iterator[Ask], most: int, dimensions: tuple[int, ...], pictures: bool) -> Iterator[Shown]:
        """See `Loader.candidates`."""
        flying: deque[Ask] = deque()

        def emit() -> tuple[Any, ...]:
            ask = next(asked)
            self._source.recent.append(ask.samples)
            flying.append(ask)
            return asked_arrays(self._index.path_bytes(ask.samples), ask, dimensions, self._preprocessing.fit,
                                self._preprocessing.crop_share)

        # A pass is long and rare: a pipeline of its own leaves no state behind.
        pipe = candidates(emit, self._engine, most, self._preprocessing, dimensions, pictures)
        side = self._preprocessing.input_size
        while True:
            try:
                outputs = pipe.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise RunError(self._explain(error)) from None
            ask = flying.popleft()
            images = torch.empty((len(dimensions), len(ask.samples), side, side, 3), device=self._device)
            for k in range(len(dimensions)):
                self._copy(outputs[k].as_tensor(), images[k])
            reduced = None
            if pictures:
                reduced = [[np.asarray(out.at(i)) for i in range(len(ask.samples))]
                           for out in (o.as_cpu() for o in outputs[len(dimensions):])]
            yield Shown(ask, images.permute(0, 1, 4, 2, 3), reduced)

    @property
    def _device(self) -> str:
        return "cpu" if self._engine.device_id is None else f"cuda:{self._engine.device_id}"

    def _copy(self, source: Any, target: torch.Tensor) -> None:
        if self._engine.device_id is None:
            feed_ndarray(source, target)
        else:
            feed_ndarray(source, target, cuda_stream=torch.cuda.current_stream(self._engine.device_id))

    def _tensor(self, output: Any) -> torch.Tensor:
        tensor = output.as_tensor()
        dtype = torch.float32 if tensor.dtype.name == "FLOAT" else torch.int64
        device_id = self._engine.device_id
        on_gpu = type(tensor).__name__.endswith("GPU")
        result = torch.empty(tensor.shape(), dtype=dtype, device=f"cuda:{device_id}" if on_gpu else "cpu")
        if on_gpu:
            feed_ndarray(tensor, result, cuda_stream=torch.cuda.current_stream(device_id))
            return result
        feed_ndarray(tensor, result)
        # Labels and samples are made on the host; pinned memory would not pay for a few hundred bytes.
        return result if device_id is None else result.to(f"cuda:{device_id}")

    def _drain(self) -> None:
        """Runs out what is in flight: DALI resets only a pipeline that has reached its end."""
        self._source.stop()
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._clean = True
        except RuntimeError:
            self._pipe, self._clean = network_input(self._source, self._engine, self._batch_size,
                                                    self._preprocessing), True

    def _explain(self, error: RuntimeError) -> str:
        """DALI's message seldom names the file: look at those in flight."""
        for samples in list(self._source.recent):
            for sample, path in zip(samples.tolist(), self._index.paths(samples), strict=True):
                if not os.path.exists(path):
                    return f"sample {sample}, {printable(path)}, is gone since it was indexed: restore it or index again"
                try:
                    size = examine(path, verify=True)
                except Exception as reason:  # whatever Pillow raises is the explanation
                    return f"sample {sample}, {printable(path)}, cannot be decoded: {printable(reason)}"
                height, width = self._index.sizes(samples[samples == sample])[0]
                if size != (width, height):
                    return (f"sample {sample}, {printable(path)}, is {size[0]}x{size[1]} pixels, was indexed as "
                            f"{width}x{height}: index again")
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"the image pipeline failed: {printable(' '.join(lines)[:400])}"
