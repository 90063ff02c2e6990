"""Compiles a network by torch.compile where a compiler works."""

from __future__ import annotations

import torch
from torch import nn

from qrdali.errors import printable
from qrdali.interfaces import RunContext


def compile_network(module: nn.Module, context: RunContext) -> nn.Module:
    """Returns `module` compiled, or as it is where compiling fails on any rank, which a line says.

    Collective. The compiled module shares the weights of `module`, whose names stay as they are.
    """
    failure = _failure(context.device)
    failures = [text for text in context.group.all_gather_object(failure) if text]
    if failures:
        context.listener.warn(f"--compile: {failures[0]}; training goes on without it")
        return module
    compiled: nn.Module = torch.compile(module)  # type: ignore[assignment]
    return compiled


def _failure(device: torch.device) -> str:
    """Returns why a small function cannot be compiled here, or ""."""

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1

    try:
        torch.compile(small)(torch.ones(8, device=device))
    except Exception as error:  # of any type: compilers are missing in many ways
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"torch.compile does not work here ({printable(lines[0])[:120]})"
    return ""
