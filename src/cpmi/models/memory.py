"""What running out of memory looks like, and how to try something that may."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What torch says on CPU ("DefaultCPUAllocator: can't allocate memory", on Windows "not enough memory"), and CUDA's
    # libraries where the allocator was not asked.
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed"))


def attempt(work: Callable[[], T], device: torch.device) -> T | None:
    """What ``work`` returns, or None if it ran out of memory; every other error is raised."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if device.type == "cuda":  # here and not above: the exception holds on to the tensors of what failed
        torch.cuda.empty_cache()
    return None
