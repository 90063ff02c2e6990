"""Which of torch's operators may stand in a step, and a mode that refuses all others.

It is for tensors that only say that they are on a device: no value can be read off them.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Why an operator does not wait for the device, and which are permitted for that reason. Whatever is not here
# may wait: look before adding it. A name that no step uses fails a test.
PERMITTED = {
    "Only sizes and strides change.": """
        as_strided_ detach expand permute select slice t unsqueeze view
    """,
    "It marks a tensor that was made on the host.": "lift_fresh",
    "Memory of a size that the host knows is set aside; what fills it is a kernel that is queued.": """
        arange empty empty_like fill_ ones_like zeros zeros_like
    """,
    "A kernel of its own is queued, for a result of a size that follows from the arguments' sizes.": """
        _log_softmax _softmax add add_ addmm argmax avg_pool2d bernoulli_ bitwise_not cat clamp clone
        constant_pad_nd convolution _native_batch_norm_legit cudnn_batch_norm div div_ eq gt lt max
        max_pool2d_with_indices maximum mean mm mul ne neg nll_loss_forward relu relu_ sigmoid silu_ stack
        linalg_vector_norm mul_ reciprocal sub_ sum
    """,
    "So it is in backward passes.": """
        _log_softmax_backward_data avg_pool2d_backward convolution_backward max_pool2d_with_indices_backward
        native_batch_norm_backward nll_loss_backward sigmoid_backward threshold_backward
    """,
    "One kernel, or a few, are queued for many weights; learning rates are arguments.": """
        _foreach_add_ _foreach_lerp_ _fused_adam_ _fused_adamw_ _fused_sgd_
    """,
    "A kernel picks or fills element by element: what a mask leaves out is not counted.": """
        gather index_select masked_fill masked_fill_ where
    """,
    "Integers pick, as many as there are; NoWaits refuses masks, whose values are counted first.": """
        index index_put_
    """,
    "A copy, which NoWaits refuses between host and device unless it is queued.": "_to_copy",
}
QUEUED = {name for names in PERMITTED.values() for name in names.split()}


class Waits(AssertionError):
    """An operator that may wait for the device."""


class NoWaits(TorchDispatchMode):
    """Refuses whatever may wait: operators that are not in QUEUED, masks, and blocking copies between host
    and device. seen: the operators that came. Within FakeTensorMode on CUDA tensors it does without
    gradients; on meta tensors with them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        # Inference mode hands on operators that are made of others, among them `to`.
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        if func.namespace == "profiler":  # marks of optimizers
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)]
        if name == "_local_scalar_dense" and tensors[0].device.type == "cpu":
            return func(*args, **kwargs)  # a number that is on the host
        self.seen.add(name)
        if name not in QUEUED:
            raise Waits(name)
        if name == "_fused_sgd_":
            return None  # works in place, and torch has none for meta tensors
        if name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise Waits(f"{name} by a mask")
        if name == "_to_copy":
            devices = {tensors[0].device.type, torch.device(kwargs.get("device") or tensors[0].device).type}
            if len(devices) > 1 and not kwargs.get("non_blocking"):
                raise Waits("a blocking copy")
        return func(*args, **kwargs)
