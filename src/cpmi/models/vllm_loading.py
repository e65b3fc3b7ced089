"""Open a vLLM engine by name: its options, its processes and memory, its log, and how to take it down."""

from __future__ import annotations

import dataclasses
import difflib
import gc
import logging
import os
import sys
import textwrap
import threading
import warnings
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import InputError, require

if TYPE_CHECKING:
    from cpmi.models import ModelSettings

_DTYPES = ("auto", "float32", "bfloat16", "float16")

# What this package decides: other values would change what a score is, or what comes back.
_DECIDED = {"model", "dtype", "generation_config", "logprobs_mode", "runner", "convert", "skip_tokenizer_init"}

# Only what the user has left open. A line per problem instead of vLLM's hundreds, and none of them on stdout; no report
# of who uses it sent over the network.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

# On CPU vLLM would take 92 % of the machine's memory for its cache: nothing would be left for a second engine.
_CPU_CACHE_BYTES = 4 * 2**30
_CACHE_OPTIONS = {"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"}
# Prompt log-probabilities take float32 logits of a whole batch, 0.6 GB for 1024 tokens and 150,000 words.
_CPU_BATCH_TOKENS = 1024

_in_process: set[int] = set()  # the cores of engines that live in this process

# Threads of an engine with processes of its own: they end soon after it, and one that the interpreter's own end stops
# in the middle of something takes the whole process down (SIGABRT).
_THREADS = ("MPClientEngineMonitor", "EngineCoreOutputQueueThread", "cpmi-vllm")
_LEAVING = 10.0  # seconds
_threads: dict[int, list[threading.Thread]] = {}  # by the engine's core


def open_engine(source: str, settings: ModelSettings) -> Any:
    """The ``vllm.LLM`` of a model.

    Raises:
        InputError: vLLM is not installed, there is no such model or option, the device is not the one that vLLM is
            built for, or the engine does not start.
    """
    _check_source(source, settings.dtype)
    _set_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's about each other, which no user can act on
        vllm = require("vllm", "vllm")
        from safetensors import SafetensorError
        from vllm.engine.arg_utils import EngineArgs
        from vllm.exceptions import VLLMError
        from vllm.platforms import current_platform

        known = [field.name for field in dataclasses.fields(EngineArgs)]
        check_options(settings.options, known, has_batch_tokens=bool(settings.batch_tokens))
        _check_device(settings.device, current_platform.device_type)
        options = engine_options(settings, current_platform.device_type)
        before = set(threading.enumerate())
        failures = (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, MemoryError)
        try:
            llm = vllm.LLM(model=str(Path(source).expanduser()) if _is_folder(source) else source, **options)
        except (*failures, SafetensorError, VLLMError) as error:
            raise InputError(f"model vllm:{source} cannot be loaded: {one_line(error)}") from error
    if _lives_here(llm.llm_engine.engine_core):
        _in_process.add(id(llm.llm_engine.engine_core))
    else:
        core = llm.llm_engine.engine_core
        _tell_of_death(core)
        _threads[id(core)] = [each for each in set(threading.enumerate()) - before if each.name in _THREADS]
    return llm


def _tell_of_death(core: Any) -> None:
    """Where the engine has processes of its own: when one ends, put an error where results are waited for.

    vLLM marks the engine as dead then, so that the next request fails; whoever waits for a result waits for ever.
    """
    processes = list(getattr(core.resources.engine_manager, "processes", ()))
    if not processes:
        return
    results = core.outputs_queue  # not the core itself, which has to be collected one day

    def watch() -> None:
        connection.wait([process.sentinel for process in processes])
        results.put_nowait(RuntimeError("a process of its own has ended"))  # after close() nobody reads it

    threading.Thread(target=watch, name="cpmi-vllm", daemon=True).start()


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "vllm" not in sys.modules:  # it warns before it has read the level
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def close_engine(llm: Any) -> None:
    """End the engine's processes or, where it lives in this one, free its memory.

    What engines in one process have in common, vLLM's process groups, goes with the last of them: vLLM would take it
    down with the first, and the others could not go on.
    """
    core = llm.llm_engine.engine_core
    _in_process.discard(id(core))
    if _in_process and _lives_here(core):
        core._finalizer.detach()  # noqa: SLF001 - what vLLM has run when the engine is collected; there is no other way
        core.engine_core.model_executor.shutdown()
    else:
        core.shutdown()
    for thread in _threads.pop(id(core), ()):
        thread.join(_LEAVING)
    del core
    gc.unfreeze()  # vLLM freezes what is there when it has started, so that nothing of it would be collected
    gc.collect()


def lives_in_process(llm: Any) -> bool:
    """Whether the engine computes in this process, so that its random numbers are torch's own."""
    return _lives_here(llm.llm_engine.engine_core)


def _lives_here(core: Any) -> bool:
    return hasattr(core, "engine_core")


def engine_options(settings: ModelSettings, device_type: str) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``; on CPU this also sets what it reads from the environment."""
    options: dict[str, Any] = {
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        "dtype": settings.dtype,
        "generation_config": "vllm",  # the checkpoint's own sampling habits stay out
        "logprobs_mode": "raw_logprobs",
    }
    if device_type == "cpu":
        _prepare_cpu()
        options["max_num_batched_tokens"] = _CPU_BATCH_TOKENS
        if not _CACHE_OPTIONS & settings.options.keys() and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            options["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    if settings.batch_tokens:
        options["max_num_batched_tokens"] = settings.batch_tokens
    return options | dict(settings.options)


def _prepare_cpu() -> None:
    """The engine in this process, on all cores.

    vLLM's own way on CPU is three processes, which import vLLM one after the other and take 1.4 GB more. In one there
    is nothing that a kill or Ctrl-C could leave behind, no script that each process runs anew, and a call can be
    seeded; it was no slower. On a GPU vLLM decides: there a process of its own is what surely gives the memory back.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))  # where it is left open, vLLM takes one


def check_options(options: Mapping[str, Any], known: list[str], *, has_batch_tokens: bool) -> None:
    """Raises InputError, with the option's name, for one that vLLM does not know or that is not free to choose."""
    for name in options:
        if name in _DECIDED or (has_batch_tokens and name == "max_num_batched_tokens"):
            raise InputError(f"option {name!r} of a vllm: model is set by cpmi; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"unknown option {name!r} of a vllm: model; {guess}(they are the arguments of vllm.LLM)")


def _check_device(wanted: str, built_for: str) -> None:
    kind, _, number = wanted.partition(":")
    if wanted != "auto" and kind != built_for:
        raise InputError(f"device {wanted!r}: the vLLM that is installed computes on {built_for!r} alone")
    if number:
        raise InputError(f"device {wanted!r}: vLLM takes the first it sees; use CUDA_VISIBLE_DEVICES={number}")


def _check_source(source: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use one of {', '.join(_DTYPES)}")
    path = Path(source).expanduser()
    if path.is_file() or path.suffix == ".gguf":
        raise InputError(f"model vllm:{source} is a file; name the folder that holds the model, or use hf: for a GGUF")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"model vllm:{source}: the folder holds no config.json, so no model")
    if not path.is_dir() and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise InputError(f"model vllm:{source}: no such folder")


def _is_folder(source: str) -> bool:
    return Path(source).expanduser().is_dir()


def one_line(error: BaseException) -> str:
    """What an error says, short enough for one line."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
