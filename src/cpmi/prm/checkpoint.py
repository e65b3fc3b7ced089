"""Reward models on disk: standard Hugging Face checkpoints, with what is needed to use them in their ``config.json``.

The field ``cpmi`` of the configuration holds a ``Card``. The rest is a ``...ForSequenceClassification`` with one label:
a decoder and one linear layer ``score``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cpmi.errors import CpmiError, InputError, require, unknown_name
from cpmi.models import ModelSettings, hub_name
from cpmi.models.loading import Loaded, fingerprint, load_pretrained
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.prm.encode import DialogEncoder, Encoder, JoinedEncoder, StepFormat
from cpmi.prm.families import FAMILIES
from cpmi.prm.network import StepScorer, decoder_of, head_of_words
from cpmi.prm.objectives import Reading
from cpmi.records import JSON, write_whole

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Card:
    """What a reward model needs to be read.

    Attributes:
        form: how steps are written.
        separator_ids: the tokens of the separator; whoever joins steps must join these.
        reading: ``sigmoid``: a score is the logit of the probability that a step is right; ``identity``: it is the
            reward itself.
        objective: what it was trained with.
        base: the model it was made from, and its revision.
        frozen: whether its decoder is the base's own, so that states computed with that serve it, too.
        maps: from rewards to the targets it learned, as ``cpmi targets`` fitted them.
    """

    form: StepFormat
    separator_ids: tuple[int, ...]
    reading: Reading
    objective: str
    base: str
    base_revision: str | None
    frozen: bool
    maps: tuple[Mapping[str, JSON], ...] = ()

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, **row}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], name: str) -> Card:
        """Read the field ``cpmi`` of a configuration.

        Raises:
            InputError: another version's.
        """
        if row.get("format") != FORMAT:
            raise InputError(f"{name}: a reward model of format {row.get('format')}, which this version does not read")
        try:
            fields = {key: value for key, value in row.items() if key != "format"}
            fields |= {"form": StepFormat(**row["form"]), "separator_ids": tuple(row["separator_ids"])}
            return cls(**fields | {"maps": tuple(row["maps"])})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name}: its config.json was not written by cpmi train ({error})") from error


@dataclass(frozen=True, slots=True)
class Opened:
    """A reward model, ready to be used.

    Attributes:
        network: on its device.
        card: None for a model that was trained elsewhere.
        family: how that is read; None where there is a card.
    """

    network: StepScorer
    encoder: Encoder
    reading: Reading
    card: Card | None
    family: str | None
    revision: str | None
    context_length: int | None


def open_checkpoint(settings: ModelSettings, family: str | None = None) -> Opened:
    """Load a reward model: ours, or one of ``FAMILIES``.

    Args:
        settings: ``name`` is a folder or a hub id.
        family: of a model that was trained elsewhere; None: what its configuration says.

    Raises:
        InputError: nothing there, half of it (an interrupted copy), a checkpoint that is no reward model.
    """
    transformers = require("transformers", "hf")
    if family is not None and family not in FAMILIES:
        raise unknown_name("family of reward models", family, FAMILIES)
    source = hub_name(settings.name)
    settings = dataclasses.replace(settings, name=source)
    if (Path(source).expanduser() / "adapter_config.json").is_file():
        if family is not None:
            raise _knows_itself(source)
        return _open_adapter(settings)
    if family is not None and FAMILIES[family].words is not None:
        return _open_language_model(settings, family)
    loaded = _complete(load_pretrained("AutoModel", source, settings), settings)
    card = _card(loaded, source)
    if card is not None and family is not None:
        raise _knows_itself(source)
    kind = (getattr(loaded.model.config, "architectures", None) or ["?"])[0]
    if card is None and family is None:
        family = {"Qwen2ForProcessRewardModel": "qwen2.5-math-prm"}.get(kind)
        family = "trl" if family is None and kind.endswith("ForTokenClassification") else family
    weights = _head_weights(source, transformers)
    if not weights:
        words = " or ".join(name for name, each in FAMILIES.items() if each.words)
        raise InputError(
            f"model {source}: a {kind} without a head 'score' is no process reward model; if its head says + and -, "
            f"name its --family ({words})"
        )
    if card is None and family is None:
        raise InputError(f"model {source}: a {kind} that does not say how its steps are joined; name its --family")
    network = StepScorer(loaded.model, _head(weights, source).to(loaded.model.device))
    return _opened(network, loaded, card, family)


def _knows_itself(source: str) -> InputError:
    return InputError(f"model {source} says in its configuration how it is read; leave --family out")


def _opened(network: StepScorer, loaded: Loaded, card: Card | None, family: str | None) -> Opened:
    tokenizer = SegmentTokenizer(loaded.tokenizer)
    encoder: Encoder
    if card is not None:
        encoder = JoinedEncoder(tokenizer, card.form)
        if encoder.separator_ids != card.separator_ids:
            raise InputError(
                f"its tokenizer says the separator in {list(encoder.separator_ids)}, and not in the tokens "
                f"{list(card.separator_ids)} that the reward model was trained on; was the tokenizer changed?"
            )
    else:
        assert family is not None  # noqa: S101
        form, alone = FAMILIES[family].form, FAMILIES[family].pieces_alone
        encoder = DialogEncoder(tokenizer) if form is None else JoinedEncoder(tokenizer, form, pieces_alone=alone)
    network.score.float()  # little, and bfloat16 would round every score to three digits
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    reading: Reading = card.reading if card is not None else "sigmoid"
    return Opened(network.eval(), encoder, reading, card, family if card is None else None, loaded.revision, context)


def _complete(loaded: Loaded, settings: ModelSettings) -> Loaded:
    if loaded.missing:
        raise InputError(
            f"model {settings.name}: its files lack the weights {', '.join(loaded.missing[:3])}; an unfinished "
            "copy, or a checkpoint of another architecture?"
        )
    return loaded


def _card(loaded: Loaded, name: str) -> Card | None:
    row = getattr(loaded.model.config, "cpmi", None)
    return None if row is None else Card.from_json(row, f"model {name}")


# --- heads ----------------------------------------------------------------------------------------------------------


def _head_weights(source: str, transformers: Any) -> dict[str, Tensor]:
    """The weights ``score.*`` of a checkpoint by the rest of their names."""
    from safetensors import SafetensorError, safe_open

    def file(name: str) -> str | None:
        found: str | None = transformers.utils.cached_file(
            str(Path(source).expanduser()), name, _raise_exceptions_for_missing_entries=False
        )
        return found

    names = ["model.safetensors"]
    if index := file("model.safetensors.index.json"):
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({shard for name, shard in places.items() if name.startswith("score.")})
    weights = {}
    for name in names:
        path = file(name)
        if path is None:
            raise InputError(f"model {source}: has no file {name}; heads are read from safetensors alone")
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - no mapping
                    if key.startswith("score."):
                        weights[key.removeprefix("score.")] = tensors.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {source}: {name} cannot be read ({error})") from error
    return weights


def _head(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """A linear layer, or two with a ReLU between them (as Qwen2.5-Math-PRM has).

    Raises:
        InputError: anything else, or more than two labels.
    """
    one, two = {"weight"}, {"0.weight", "2.weight"}
    if one <= set(weights) <= {*one, "bias"}:
        head: nn.Module = _linear(weights, "")
        labels = weights["weight"].shape[0]
    elif two <= set(weights) <= {*two, "0.bias", "2.bias"}:
        head = nn.Sequential(_linear(weights, "0."), nn.ReLU(), _linear(weights, "2."))
        labels = weights["2.weight"].shape[0]
    else:
        raise InputError(f"model {name}: a head with the weights {', '.join(sorted(weights))} cannot be read")
    if labels not in (1, 2):
        raise InputError(f"model {name}: its head gives {labels} scores for a step; 1 or 2 (wrong, right) can be read")
    return head


def _linear(weights: Mapping[str, Tensor], prefix: str) -> nn.Linear:
    weight, bias = weights[f"{prefix}weight"], weights.get(f"{prefix}bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return layer


def _open_language_model(settings: ModelSettings, family: str) -> Opened:
    loaded = _complete(load_pretrained("AutoModelForCausalLM", settings.name, settings), settings)
    words = FAMILIES[family].words
    assert words is not None  # noqa: S101
    head = head_of_words(loaded.model, SegmentTokenizer(loaded.tokenizer), words, settings.name)
    return _opened(StepScorer(decoder_of(loaded.model, settings.name), head), loaded, None, family)


def _open_adapter(settings: ModelSettings) -> Opened:
    """A LoRA adapter that was not merged, on top of its base model."""
    peft = require("peft", "train")
    folder = Path(settings.name).expanduser()
    try:
        row = json.loads((folder / "cpmi.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {folder}: an adapter that cpmi train did not write ({error})") from error
    card = Card.from_json(row, f"model {folder}")
    try:
        loaded = load_base(dataclasses.replace(settings, name=card.base))
    except InputError as error:
        raise InputError(f"model {folder} is an adapter, and its base does not load: {error}") from error
    if loaded.revision != card.base_revision:
        raise InputError(f"model {folder} is an adapter for another revision of {card.base} than what is there now")
    with old_names_of_peft():
        adapted = peft.PeftModel.from_pretrained(loaded.model, str(folder))
    inner = adapted.get_base_model()
    network = StepScorer(decoder_of(inner, card.base), inner.score)
    both = hashlib.sha256(f"{loaded.revision} {fingerprint(folder)}".encode()).hexdigest()[:16]
    return _opened(network, dataclasses.replace(loaded, revision=both), card, None)


@contextlib.contextmanager
def old_names_of_peft() -> Iterator[None]:
    """PEFT 0.21 calls what Transformers 5.24 has renamed by its old names, and every user would be warned of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.*", FutureWarning)
        yield


def load_base(settings: ModelSettings) -> Loaded:
    """A model to be made a reward model: its decoder, and a new head with one label.

    Raises:
        InputError: it does not load, or is no decoder with a head ``score``.
    """
    source = hub_name(settings.name)
    loaded = load_pretrained("AutoModelForSequenceClassification", source, settings, num_labels=1)
    if not isinstance(getattr(loaded.model, "score", None), nn.Module):
        raise InputError(f"model {settings.name}: a {type(loaded.model).__name__} has no head 'score'; take a decoder")
    if others := [name for name in loaded.missing if not name.startswith("score.")]:
        raise InputError(f"model {settings.name}: its files lack the weights {', '.join(others[:3])}")
    decoder_of(loaded.model, settings.name)
    return loaded


# --- saving ---------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, card: Card, record: Mapping[str, JSON]) -> None:
    """Write a reward model, whole or not at all: an interrupted save leaves nothing under this name.

    Args:
        model: a ``...ForSequenceClassification``, or an adapter on one.
        record: how it was trained, for ``training.json``.

    Raises:
        CpmiError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        config = model.config
        config.cpmi = card.to_json()
        # What transformers itself needs to tell the last token of each of several texts.
        if config.get_text_config().pad_token_id is None:
            config.get_text_config().pad_token_id = SegmentTokenizer(tokenizer).pad_token()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if (partial / "adapter_config.json").exists():
            write_whole(partial / "cpmi.json", (json.dumps(card.to_json(), indent=1) + "\n").encode())
        write_whole(partial / "training.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CpmiError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
