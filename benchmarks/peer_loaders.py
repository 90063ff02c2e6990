"""The loaders that benchmarks/peers.py compares, each as its users write it.

A peer is a function that takes a `Task` and returns its kinds of epochs by name. An epoch is a function of
its number that yields batches on the task's device. Libraries are imported where they are used: each peer
runs in a process of its own, so that one library's threads do not disturb another's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUALITY = 0.5
DIMENSIONS = ("color", "crop", "resolution")
AHEAD = 3  # batches that a peer prepares before they are asked for, where it lets its user choose

Epoch = Callable[[int], Iterator[Any]]


@dataclass(frozen=True)
class Task:
    """Says what is loaded. data: an indexed data set, whose train split is read. paths: the files of that
    split, in its order. side: of the square that comes out, in pixels. device: "cpu" or "cuda"."""

    data: Path
    paths: list[str]
    side: int
    batch_size: int
    threads: int
    device: str = "cpu"

    @property
    def batches(self) -> list[list[str]]:
        """Returns the files of each batch."""
        return [
            self.paths[first : first + self.batch_size]
            for first in range(0, len(self.paths), self.batch_size)
        ]


class Peer(NamedTuple):
    """A loader beside others. packages: modules that it needs. pixels: how its pixels come to differ from
    Pillow's, or "" where they do not."""

    open: Callable[[Task], dict[str, Epoch]]
    packages: tuple[str, ...]
    pixels: str


def _qrdali(task: Task) -> dict[str, Epoch]:
    import qrdali

    data = qrdali.Dataset.open(task.data)
    loader = qrdali.Loader(
        data["train"],
        input_size=task.side,
        batch_size=task.batch_size,
        device=task.device,  # type: ignore[arg-type]
        threads=task.threads,
    )

    def epoch(number: int, quality: dict[str, float]) -> Iterator[Any]:
        # Number 0 is in the order of the files, so that its pixels can be compared.
        for batch in loader.epoch(number, quality=quality, shuffle=number > 0):
            yield batch.images

    kinds: dict[str, Epoch] = {"qrdali": partial(epoch, quality={})}
    for dimension in DIMENSIONS:
        kinds[f"qrdali {dimension}"] = partial(epoch, quality={dimension: QUALITY})
    kinds["qrdali combination"] = partial(epoch, quality=dict.fromkeys(DIMENSIONS, QUALITY))
    return kinds


def _dali(task: Task, decode_only: bool) -> Epoch:
    import torch
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import feed_ndarray

    sizes = [len(files) for files in task.batches]
    depth = min(AHEAD, len(sizes))

    @pipeline_def(
        batch_size=task.batch_size,
        num_threads=task.threads,
        device_id=None if task.device == "cpu" else 0,
        prefetch_queue_depth=depth,
    )  # type: ignore[untyped-decorator, unused-ignore]
    def graph() -> Any:
        encoded, _ = fn.readers.file(files=task.paths, name="reader", pad_last_batch=True)
        image = fn.decoders.image(encoded, device="cpu" if task.device == "cpu" else "mixed")
        if decode_only:
            return image
        image = fn.resize(
            image, size=[task.side, task.side], interp_type=types.INTERP_TRIANGULAR, antialias=True
        )
        return fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * mean for mean in MEAN],
            std=[255 * std for std in STD],
        )

    pipe = graph()
    pipe.build()

    def epoch(number: int) -> Iterator[Any]:
        # The queue is empty before and after each epoch, as every other peer's. The first call fills it.
        for _ in range(depth if number else 1):
            pipe.schedule_run()
        for n, size in enumerate(sizes):
            (output,) = pipe.share_outputs()
            if decode_only:
                yield range(size)
            else:
                tensor = output.as_tensor()
                images = torch.empty(tensor.shape(), device=task.device)
                stream = None if task.device == "cpu" else torch.cuda.current_stream()
                feed_ndarray(tensor, images, cuda_stream=stream)
                # The reader fills its last batch up with the first files again.
                yield images[:size].permute(0, 3, 1, 2)
            pipe.release_outputs()
            if n + depth < len(sizes):
                pipe.schedule_run()

    return epoch


def _plain_dali(task: Task) -> dict[str, Epoch]:
    return {"plain DALI": _dali(task, False)}


def _decode_alone(task: Task) -> dict[str, Epoch]:
    return {"decode alone": _dali(task, True)}


class _Files:
    """A map-style data set, as for torch's DataLoader. load: makes an item of a file."""

    def __init__(self, paths: list[str], load: Callable[[str], Any]) -> None:
        self.paths, self.load = paths, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> Any:
        return self.load(self.paths[item])


def _data_loader(task: Task, load: Callable[[str], Any], channels_last: bool) -> Epoch:
    """Returns epochs of torch's DataLoader with as many worker processes as the task has threads."""
    import torch

    torch.set_num_threads(task.threads)
    data: Any = torch.utils.data.DataLoader(
        _Files(task.paths, load),  # type: ignore[arg-type]
        task.batch_size,
        num_workers=task.threads,
        persistent_workers=True,
        pin_memory=task.device == "cuda",
        multiprocessing_context="fork",  # torch's own choice for a program that is started as users start it
    )

    def epoch(number: int) -> Iterator[Any]:
        for images in data:
            on_device = images.to(task.device, non_blocking=True)
            yield on_device.permute(0, 3, 1, 2) if channels_last else on_device

    return epoch


def _torchvision_pillow(task: Task) -> dict[str, Epoch]:
    from PIL import Image
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize((task.side, task.side)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def full(path: str) -> Any:
        return prepare(Image.open(path).convert("RGB"))

    def combination(path: str) -> Any:
        image = Image.open(path).convert("RGB")
        window = _window(image.width, image.height)
        image = image.crop(window)
        image = image.resize((_root_of(image.width), _root_of(image.height)), Image.Resampling.BILINEAR)
        return prepare(image.point(_BINS.tolist() * 3))

    return {
        "torchvision, Pillow": _data_loader(task, full, False),
        "torchvision, Pillow combination": _data_loader(task, combination, False),
    }


def _torchvision_io(task: Task) -> dict[str, Epoch]:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    prepare = v2.Compose(
        [
            v2.Resize((task.side, task.side), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return {
        "torchvision.io": _data_loader(
            task, lambda path: prepare(decode_image(path, ImageReadMode.RGB)), False
        )
    }


def _cv2(task: Task) -> dict[str, Epoch]:
    import cv2  # type: ignore[import-not-found, unused-ignore]

    cv2.setNumThreads(0)  # each worker is a process already
    scale = np.array([1 / 255 / std for std in STD], np.float32)
    offset = np.array([-mean / std for mean, std in zip(MEAN, STD, strict=True)], np.float32)

    def normalised(image: Any) -> Any:
        found = cv2.resize(image, (task.side, task.side), interpolation=cv2.INTER_AREA).astype(np.float32)
        found *= scale
        found += offset
        return found

    def full(path: str) -> Any:
        return normalised(cv2.imread(path, cv2.IMREAD_COLOR_RGB))

    def combination(path: str) -> Any:
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        left, top, right, bottom = _window(image.shape[1], image.shape[0])
        image = image[top:bottom, left:right]
        size = (_root_of(image.shape[1]), _root_of(image.shape[0]))
        return normalised(cv2.LUT(cv2.resize(image, size, interpolation=cv2.INTER_AREA), _BINS))

    return {
        "cv2 + DataLoader": _data_loader(task, full, True),
        "cv2 + DataLoader combination": _data_loader(task, combination, True),
    }


def _simplejpeg(task: Task) -> dict[str, Epoch]:
    import simplejpeg  # type: ignore[import-not-found, unused-ignore]
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)  # the pool has the threads
    pool = ThreadPoolExecutor(task.threads, "simplejpeg")
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    size = (task.side, task.side)

    def load(path: str, out: Any) -> None:
        decoded = torch.from_numpy(simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB"))
        channels_last = decoded.permute(2, 0, 1)[None]
        resized = interpolate(channels_last, size, mode="bilinear", antialias=True)
        torch.sub(resized, mean, out=out)
        out.div_(std)

    def begin(paths: list[str]) -> tuple[Any, list[Any]]:
        batch = torch.empty((len(paths), *size, 3)).permute(0, 3, 1, 2)
        return batch, [pool.submit(load, path, batch[i : i + 1]) for i, path in enumerate(paths)]

    def epoch(number: int) -> Iterator[Any]:
        batches = iter(task.batches)
        running = [begin(paths) for paths in islice(batches, AHEAD)]
        while running:
            batch, images = running.pop(0)
            for image in images:
                image.result()
            if following := next(batches, None):
                running.append(begin(following))
            yield batch.to(task.device)

    return {"simplejpeg in threads": epoch}


def _spdl(task: Task) -> dict[str, Epoch]:
    import spdl.io  # type: ignore[import-not-found, unused-ignore]
    import torch
    from spdl.pipeline import PipelineBuilder  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(1)  # the pipeline has the threads
    # "bilinear" of FFmpeg averages over what a pixel covers; None leaves the whole image in the square.
    scaled = spdl.io.get_video_filter_desc(
        scale_width=task.side, scale_height=task.side, scale_algo="bilinear", scale_mode=None, pix_fmt="rgb24"
    )
    mean, std = (255 * torch.tensor(values) for values in (MEAN, STD))
    spdl.io.load_image(task.paths[0])  # says whether FFmpeg is there; an epoch would only log it

    def load(paths: list[str]) -> Any:
        buffer = spdl.io.load_image_batch(paths, width=None, height=None, filter_desc=scaled)
        return spdl.io.to_torch(buffer).to(torch.float32).sub_(mean).div_(std)

    def epoch(number: int) -> Iterator[Any]:
        pipeline = (
            PipelineBuilder()
            .add_source(task.batches)
            .pipe(load, concurrency=task.threads, output_order="input")
            .add_sink(AHEAD)
            .build(num_threads=task.threads)
        )
        with pipeline.auto_stop():
            for images in pipeline:
                yield images.to(task.device).permute(0, 3, 1, 2)

    return {"SPDL": epoch}


def _tf_data(task: Task) -> dict[str, Epoch]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # its batches are made on the host
    import tensorflow as tf  # type: ignore[import-not-found, unused-ignore]
    import torch

    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    mean, std = (255 * np.array(values, np.float32) for values in (MEAN, STD))

    def load(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return (tf.image.resize(image, (task.side, task.side), antialias=True) - mean) / std

    options = tf.data.Options()
    options.threading.private_threadpool_size = task.threads
    options.threading.max_intra_op_parallelism = 1
    data = (
        tf.data.Dataset.from_tensor_slices(task.paths)
        .map(load, num_parallel_calls=task.threads)
        .batch(task.batch_size)
        .prefetch(AHEAD)
        .with_options(options)
    )

    def epoch(number: int) -> Iterator[Any]:
        for images in data:
            yield torch.from_numpy(images.numpy()).to(task.device).permute(0, 3, 1, 2)

    return {"tf.data": epoch}


# Sixteen values of each channel, as quality .5 of color: the centre of each bin.
_BINS = (np.arange(256) // 16 * 16 + 8).astype(np.uint8)


def _root_of(pixels: int) -> int:
    """Returns a side of `pixels` at quality .5, which is of the area."""
    return max(1, round(pixels * QUALITY**0.5))


def _window(width: int, height: int) -> tuple[int, int, int, int]:
    """Returns a random window with half of the area: left, top, right, bottom."""
    wide, high = _root_of(width), _root_of(height)
    left, top = np.random.randint(width - wide + 1), np.random.randint(height - high + 1)
    return left, top, left + wide, top + high


_TORCH_RESIZE = "torch resizes bytes with weights of other precision than Pillow's"
_DALI_RESIZE = "DALI's own resampling"
PEERS: dict[str, Peer] = {
    "qrdali": Peer(_qrdali, (), _TORCH_RESIZE),
    "decode alone": Peer(_decode_alone, (), ""),
    "plain DALI": Peer(_plain_dali, (), _DALI_RESIZE),
    "torchvision, Pillow": Peer(_torchvision_pillow, ("torchvision", "PIL"), ""),
    "torchvision.io": Peer(_torchvision_io, ("torchvision",), _TORCH_RESIZE),
    "cv2 + DataLoader": Peer(_cv2, ("cv2",), "INTER_AREA, the filter of OpenCV that averages, is a box"),
    "simplejpeg in threads": Peer(_simplejpeg, ("simplejpeg",), _TORCH_RESIZE),
    "SPDL": Peer(_spdl, ("spdl.io", "spdl.pipeline"), "FFmpeg resizes chroma before it makes RGB of it"),
    "tf.data": Peer(_tf_data, ("tensorflow",), "tensorflow decodes with a faster DCT and does not round"),
}
