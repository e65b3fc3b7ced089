"""Load a Transformers model by name: a folder, a hub id, or a GGUF file (local or ``ORG/REPO/FILE.gguf``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import InputError, require

if TYPE_CHECKING:
    from cpmi.models import ModelSettings
    from cpmi.models.hf import HFModel

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_hf(source: str, settings: ModelSettings) -> HFModel:
    """Open ``source`` with Transformers.

    Raises:
        InputError: Transformers is not installed, there is no such model, it is no causal language model, or the
            device or dtype is not to be had.
    """
    torch = require("torch", "hf")
    require("accelerate", "hf")
    transformers = require("transformers", "hf")
    from cpmi.models.hf import HFModel

    if settings.dtype not in _DTYPES:
        raise InputError(f"dtype {settings.dtype!r} is unknown; use one of {', '.join(_DTYPES)}")
    where, options = _locate(source, settings.dtype)
    device = _device(torch, settings.device)
    bars = transformers.utils.logging
    bars.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **_only(options, "gguf_file"))
        model = transformers.AutoModelForCausalLM.from_pretrained(where, **options).to(device)
    except (OSError, ValueError, KeyError, ImportError, torch.OutOfMemoryError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model hf:{source} cannot be loaded: {first_line}") from error
    finally:
        bars.enable_progress_bar()
    return HFModel(
        model,
        tokenizer,
        name=settings.name,
        revision=getattr(model.config, "_commit_hash", None) or _fingerprint(Path(source)),
        batch_tokens=settings.batch_tokens,
    )


def _locate(source: str, dtype: str) -> tuple[str, dict[str, Any]]:
    """What to hand to ``from_pretrained``, and with which options."""
    path = Path(source)
    if path.suffix != ".gguf":
        if not path.exists() and (path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1):
            raise InputError(f"model hf:{source}: no such folder")
        return source, {"dtype": dtype}
    if not path.exists() and source.count("/") != 2:
        raise InputError(f"model hf:{source}: no such file")
    from transformers import GgufConfig

    # GGUF weights have no dtype of their own once unpacked; they carry fewer bits than bfloat16 does.
    options = {"gguf_file": path.name, "dtype": "bfloat16" if dtype == "auto" else dtype}
    return str(path.parent), options | {"quantization_config": GgufConfig(dequantize=True)}


def _only(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _device(torch: Any, wanted: str) -> Any:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises without the device; the text says which
        raise InputError(f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _fingerprint(path: Path) -> str | None:
    """What tells two local checkpoints of the same path apart, without reading gigabytes: names, sizes, the config."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        if file.name == "config.json":
            digest.update(file.read_bytes())
        else:
            with file.open("rb") as data:
                digest.update(data.read(2**16))
    return digest.hexdigest()[:16]
