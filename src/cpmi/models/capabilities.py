"""What a model can take: a whole token tree, or only one plain sequence at a time."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

# Models whose layers read a mask per layer type, checked against plain scoring in tests/test_hf.py. Others that mix
# sliding and full attention are scored plainly once a tree is deeper than their window.
_MASK_PER_LAYER_TYPE = {"cohere2", "gemma2", "gemma3_text", "gpt_oss", "olmo3", "qwen2", "qwen3"}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How a model's attention can be told who may see whom.

    Attributes:
        no_tree: why the model takes no tree at all, or None.
        window: how many tokens back its sliding layers see, counting the token itself; None: there are none.
        kinds: the kinds of its attention layers where they are mixed; empty: all are alike.
        mask_per_kind: its layers can be given a mask by kind.
    """

    no_tree: str | None
    window: int | None
    kinds: tuple[str, ...]
    mask_per_kind: bool

    def too_deep(self, depth: int) -> bool:
        """Whether a tree of this depth would need a mask per kind of layer, and the model takes none."""
        return self.window is not None and depth > self.window and bool(self.kinds) and not self.mask_per_kind


def capabilities(model: Any) -> Capabilities:
    """Read them off the model's configuration and code."""
    config = model.config.get_text_config()
    kinds = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
    window = getattr(config, "sliding_window", None)
    if kinds and "sliding_attention" not in kinds:
        window = None  # set, but no layer uses it
    return Capabilities(
        _why_no_tree(model, kinds), window, kinds if len(kinds) > 1 else (), config.model_type in _MASK_PER_LAYER_TYPE
    )


def _why_no_tree(model: Any, kinds: tuple[str, ...]) -> str | None:
    # The underscored attributes are Transformers' own way to say these things about a model; there is no public one.
    if getattr(model, "_is_stateful", False):
        return "recurrent layers cannot take a token tree"
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        return f"layers of the kind {', '.join(unknown)} cannot take a token tree"
    if (attention := model.config._attn_implementation) not in ("sdpa", "eager"):  # noqa: SLF001
        return f"attention of the kind {attention} cannot take a token tree"
    if not model._supports_attention_backend:  # noqa: SLF001
        # Code of an older kind may build masks of its own from where a token stands in the row (GPT-Neo, GPT-J).
        return "its own attention code may not take a token tree"
    if not {"position_ids", "attention_mask"} <= set(inspect.signature(model.forward).parameters):
        return "its forward pass takes no positions"
    return None
