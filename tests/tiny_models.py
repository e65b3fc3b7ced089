"""Tiny random language models and tokenizers, made on the spot: real architectures, no downloads.

The weights are far larger than a real initialization's, so that every token matters: an attention mask or a position
that is wrong shows in the first digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cpmi.protocols import FloatArray, TokenTree

WINDOW = 8  # of the models with sliding windows: far shorter than any tree of the tests
CONTEXT = 256
VOCABULARY = 300  # 256 bytes, a few special and merged tokens, and some that the tokenizers never use

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_ENDS = {"bos_token_id": None, "eos_token_id": 257}
_GPT2 = _ENDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen2-mixed": ("Qwen2Config", _SIZES | _MIXED | {"use_sliding_window": True}),
    "qwen3-mixed": ("Qwen3Config", _SIZES | _MIXED | {"use_sliding_window": True}),
    "gemma2": ("Gemma2Config", _SIZES | _MIXED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", _SIZES | _MIXED | {"query_pre_attn_scalar": 8}),
    "olmo3": ("Olmo3Config", _SIZES | _MIXED),
    "cohere2": ("Cohere2Config", _SIZES | _MIXED | {"logit_scale": 0.25}),
    "gpt-oss": (
        "GptOssConfig",
        _SIZES | _MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager"},
    ),
    "exaone4-mixed": ("Exaone4Config", _SIZES | _MIXED),
    "mistral": ("MistralConfig", _SIZES | {"sliding_window": WINDOW}),
    "granite": ("GraniteConfig", _SIZES | {"logits_scaling": 4.0}),
    "gpt2": ("GPT2Config", {key: _SIZES[key] for key in ("vocab_size", "initializer_range")} | _GPT2),
    "gpt-neo": (
        "GPTNeoConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "initializer_range": 0.4}
        | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "max_position_embeddings": CONTEXT}
        | _ENDS,
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
        | {"initializer_range": 0.4, "eos_token_id": 257, "pad_token_id": None, "bos_token_id": None},
    ),
    "bert": (
        "BertConfig",
        {key: _SIZES[key] for key in _SIZES if key not in ("num_key_value_heads", "head_dim")}
        | {"intermediate_size": 48},
    ),
}


def tiny_model(kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of one of ``CONFIGS`` in float32; ``changes`` are fields of its configuration."""
    config_class, fields = CONFIGS[kind]
    fields = fields | changes
    how = {"attn_implementation": fields.pop("attn_implementation")} if "attn_implementation" in fields else {}
    config = getattr(transformers, config_class)(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, **how
        )
        # Some architectures start with norms at zero or weights that do nothing; random ones leave nothing untested.
        for weight in model.parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=0.5, std=0.3)
    return model.eval()


# --- tokenizers -----------------------------------------------------------------------------------------------------

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def byte_tokenizer(*, bos: bool = False, merges: bool = False) -> PreTrainedTokenizerFast:
    r"""A byte-level BPE of single bytes; ``merges``: a blank line, and one behind a full stop, are one token each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {BEGIN: 256, END: 257}
    pairs = [("Ċ", "Ċ"), (".", "ĊĊ")] if merges else []
    vocabulary |= {"".join(pair): 258 + i for i, pair in enumerate(pairs)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer, bos=bos)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: a space before every text (the dummy prefix), and a first token."""
    letters = ["▁", *(chr(code) for code in range(33, 127)), "\n"]
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {UNKNOWN: 255, BEGIN: 256, END: 257}
    vocabulary |= {"▁T": 258, "▁a": 259}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "T"), ("▁", "a")], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return _wrapped(tokenizer, bos=True)


def _wrapped(tokenizer: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 256)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END
    )


# --- the oracle -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def oracle(model: Any, tree: TokenTree) -> FloatArray:
    """What every scorer must equal: each scored node's path as a sequence of its own, all logits in float32."""
    logprobs = np.full(len(tree), np.nan)
    for node in np.flatnonzero(tree.scored).tolist():
        ids = tree.ids[tree.path(node)]
        logits = model(torch.from_numpy(ids[None, :-1]).to(model.device)).logits[0, -1]
        logprobs[node] = logits.float().log_softmax(-1)[ids[-1]].item()
    return logprobs


def random_tree(rng: np.random.Generator, size: int, *, branching: float = 0.3, scored: float = 0.5) -> TokenTree:
    """A preorder tree (or forest) of random tokens."""
    parents, path = [-1], [0]
    for node in range(1, size):
        if rng.random() < branching:  # back to some ancestor, or to none: a new root
            path = path[: rng.integers(len(path))]
        parents.append(path[-1] if path else -1)
        path.append(node)
    ancestors = np.array(parents)
    return TokenTree(rng.integers(0, 256, size), ancestors, (rng.random(size) < scored) & (ancestors >= 0))


def chain(ids: Sequence[int], scored_from: int = 1) -> TokenTree:
    """One sequence, scored from a place on."""
    places = np.arange(len(ids))
    return TokenTree(np.array(ids, dtype=np.int64), places - 1, places >= scored_from)
