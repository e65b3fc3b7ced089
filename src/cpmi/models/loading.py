"""Load a Transformers model by name: a folder, a hub id, or a GGUF file (local or ``ORG/REPO/FILE.gguf``)."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpmi.errors import InputError, require

if TYPE_CHECKING:
    from cpmi.models import ModelSettings
    from cpmi.models.hf import HFModel

_DTYPES = ("auto", "float32", "bfloat16", "float16")

_SAMPLES, _SAMPLE_BYTES = 256, 4096  # read of each file of a local checkpoint to recognize it


def load_hf(source: str, settings: ModelSettings) -> HFModel:
    """Open ``source`` with Transformers.

    Raises:
        InputError: Transformers is not installed, there is no such model, it is no causal language model, or the
            device or dtype is not to be had.
    """
    loaded = load_pretrained("AutoModelForCausalLM", source, settings)
    from cpmi.models.hf import HFModel

    if missing := loaded.missing:
        raise InputError(f"model hf:{source} is no causal language model: it has no weights {', '.join(missing[:3])}")
    return HFModel(
        loaded.model,
        loaded.tokenizer,
        name=settings.name,
        revision=loaded.revision,
        batch_tokens=settings.batch_tokens,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What ``load_pretrained`` found.

    Attributes:
        missing: names of weights that the files do not have, and that now hold random numbers.
        revision: the hub's commit, or a fingerprint of local files.
    """

    model: Any
    tokenizer: Any
    missing: tuple[str, ...]
    revision: str | None


def load_pretrained(auto_class: str, source: str, settings: ModelSettings, **config: Any) -> Loaded:
    """A model and its tokenizer, by one of Transformers' ``Auto`` classes, on the device.

    Args:
        source: a folder, a hub id, or a GGUF file.
        config: fields of the model's configuration to change.

    Raises:
        InputError: Transformers is not installed, there is no such model, it does not load or does not fit its
            configuration, or the device or dtype is not to be had.
    """
    torch = require("torch", "hf")
    require("accelerate", "hf")
    transformers = require("transformers", "hf")
    from safetensors import SafetensorError

    if settings.dtype not in _DTYPES:
        raise InputError(f"dtype {settings.dtype!r} is unknown; use one of {', '.join(_DTYPES)}")
    where, options = _locate(source, settings.dtype)
    device = _device(torch, settings.device)
    # Otherwise a model with code of its own would ask on the terminal whether to run it, and a run would wait.
    options["trust_remote_code"] = False
    try:
        with _quiet(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                where, **_only(options, "gguf_file", "trust_remote_code")
            )
            model, loading = getattr(transformers, auto_class).from_pretrained(
                where, output_loading_info=True, ignore_mismatched_sizes=True, **options, **config
            )
            model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {settings.name} cannot be loaded: {_one_line(error)}") from error
    if mismatched := sorted(key for key, *_ in loading["mismatched_keys"]):
        raise InputError(
            f"model {settings.name}: its config.json does not fit its weights ({', '.join(mismatched[:3])})"
        )
    return Loaded(model, tokenizer, tuple(sorted(loading["missing_keys"])), revision_of(source))


def revision_of(source: str) -> str | None:
    """What tells this model from another of its name: a hub's commit (and file, where it holds several models), or a
    fingerprint of local files; None where the hub's cache does not say."""
    if (local := fingerprint(Path(source).expanduser())) is not None:
        return local
    hub = require("transformers", "hf").utils.hub
    repository, _, file = source.rpartition("/") if source.endswith(".gguf") else (source, "", "config.json")
    try:
        found = hub.cached_file(repository, file, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    commit: str | None = hub.extract_commit_hash(found, None)
    return f"{commit}/{file}" if commit and source.endswith(".gguf") else commit


def _one_line(error: BaseException) -> str:
    text = str(error) if not isinstance(error, KeyError) else f"{error} is missing"
    return textwrap.shorten(text, 300, placeholder=" ...") or type(error).__name__


def _locate(source: str, dtype: str) -> tuple[str, dict[str, Any]]:
    """What to hand to ``from_pretrained``, and with which options."""
    path = Path(source).expanduser()
    if path.suffix != ".gguf":
        if path.is_file():
            raise InputError(f"model hf:{source} is a file; name the folder that holds the model, or a .gguf file")
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(f"model hf:{source}: the folder holds no config.json, so no model of Transformers")
        if path.is_dir():
            return str(path), {"dtype": dtype}
        if _is_local(source) or source.count("/") > 1:
            raise InputError(f"model hf:{source}: no such folder")
        return source, {"dtype": dtype}
    if not path.is_file() and (_is_local(source) or source.count("/") != 2):
        raise InputError(f"model hf:{source}: no such file")
    from transformers import GgufConfig

    # GGUF weights have no dtype of their own once unpacked; they carry fewer bits than bfloat16 does.
    options = {"gguf_file": path.name, "dtype": "bfloat16" if dtype == "auto" else dtype}
    return str(path.parent), options | {"quantization_config": GgufConfig(dequantize=True)}


def _is_local(source: str) -> bool:
    """Whether no hub id looks like this."""
    return source.startswith(("/", ".", "~"))


def _only(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


@contextmanager
def _quiet(bars: Any) -> Iterator[None]:
    """No table of missing weights (an error says it in one line), and progress bars only where somebody watches."""
    reports = logging.getLogger("transformers.modeling_utils")
    hide_bars = not sys.stderr.isatty() and bars.is_progress_bar_enabled()
    reports.addFilter(_is_no_load_report)
    if hide_bars:
        bars.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()) if hide_bars else nullcontext():  # the GGUF reader's bar does not ask
            yield
    finally:
        reports.removeFilter(_is_no_load_report)
        if hide_bars:
            bars.enable_progress_bar()


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _device(torch: Any, wanted: str) -> Any:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises without the device; the text says which
        raise InputError(f"device {wanted!r} cannot be used: {_one_line(error)}") from error
    return device


def fingerprint(path: Path) -> str | None:
    """What tells two local checkpoints of the same path apart, without reading gigabytes: names, sizes, samples."""
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            # All of a small file; of a large one samples all over, since fine-tuning may leave its beginning alone.
            for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                data.seek(start)
                digest.update(data.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
