"""Scoring trees equals scoring each sequence plainly, whatever the model, the batch and the memory."""

from __future__ import annotations

import functools
import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from cpmi.errors import InputError
from cpmi.models import ModelSettings, embedded_weights, forward, open_model
from cpmi.models.capabilities import _MASK_PER_LAYER_TYPE
from cpmi.models.hf import HFModel
from cpmi.models.memory import is_out_of_memory
from cpmi.prompts import ContextKind, Template, plan_scoring, step_contexts
from cpmi.protocols import FloatArray, ScoredTree, TokenTree, Truncation
from tiny_models import (
    CONTEXT,
    VOCABULARY,
    WINDOW,
    byte_tokenizer,
    chain,
    metaspace_tokenizer,
    oracle,
    random_tree,
    tiny_model,
)

CONTEXT_KINDS: tuple[ContextKind, ...] = ("marginal", "cumulative", "leave-one-out")
MIXED = ("qwen2-mixed", "qwen3-mixed", "gemma2", "gemma3", "olmo3", "cohere2", "gpt-oss")  # given masks by layer type
TREE_MODELS = ("llama", "qwen2", "mistral", "granite", "gpt2", *MIXED)
PLAIN_MODELS = ("mamba", "gpt-neo", "exaone4-mixed")
TOLERANCE = 1e-4


@functools.cache
def tiny(kind: str, **changes: Any) -> Any:
    return tiny_model(kind, **changes)


def hf(kind: str, *, batch_tokens: int = 0, **changes: Any) -> HFModel:
    return HFModel(tiny(kind, **changes), byte_tokenizer(), name=kind, batch_tokens=batch_tokens)


@functools.cache
def some_trees() -> tuple[TokenTree, ...]:
    """Trees and forests deeper than the sliding windows, of unlike size, and some with nothing to score."""
    rng = np.random.default_rng(7)
    shapes = [(60, 0.1), (9, 0.4), (90, 0.1), (1, 0.0), (30, 0.0), (70, 0.08)]
    trees = [random_tree(rng, size, branching=branching) for size, branching in shapes]
    trees.append(TokenTree(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_)))
    assert sorted(int(tree.depths().max(initial=0)) > WINDOW for tree in trees)[-4:] == [True] * 4
    return tuple(trees)


@functools.cache
def expected(kind: str, **changes: Any) -> list[FloatArray]:
    return [oracle(tiny(kind, **changes), tree) for tree in some_trees()]


def values(results: Sequence[ScoredTree]) -> list[FloatArray]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.logprobs for result in results if result.logprobs is not None]


def assert_same(results: Sequence[ScoredTree], wanted: Sequence[FloatArray]) -> None:
    for got, want in zip(values(results), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)  # NaN, where nothing is scored, equals NaN


def spy(monkeypatch: pytest.MonkeyPatch, model: Any, see: Callable[..., None]) -> None:
    """Call ``see(ids, output)`` after each forward pass of the model."""
    original = model.forward

    @functools.wraps(original)
    def seen(input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = original(input_ids, **inputs)
        see(input_ids, output)
        return output

    monkeypatch.setattr(model, "forward", seen)


def limit_memory(monkeypatch: pytest.MonkeyPatch, model: Any, tokens: int, error: BaseException | None = None) -> None:
    """The model's forward pass runs out of memory with more tokens than that."""
    original = model.forward

    @functools.wraps(original)
    def forward_within(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if input_ids.numel() > tokens:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return original(input_ids, **inputs)

    monkeypatch.setattr(model, "forward", forward_within)


# --- trees equal plain sequences ------------------------------------------------------------------------------------


def planned(model: HFModel, kind: ContextKind, steps: Sequence[str], answers: Sequence[str]) -> list[TokenTree]:
    contexts = list(dict.fromkeys(context for pair in step_contexts(kind, len(steps)) for context in pair))
    templates = [Template("Q: {question}\n", "A: {answer}"), Template("{question}\n\n", "= {answer}")]
    plans = plan_scoring("2+2-1?", steps, answers, contexts, templates, model)
    assert len(plans) == 2
    return [plan.tree for plan in plans]


@pytest.mark.parametrize("context", CONTEXT_KINDS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_every_context_equals_the_oracle(kind: str, context: ContextKind) -> None:
    model = hf(kind)
    trees = planned(model, context, ["2 + 2 = 4", "4 - 1 = 3.", "So 3"], ["3", "4", "13"])
    assert_same(model.logprobs(trees), [oracle(tiny(kind), tree) for tree in trees])


@pytest.mark.real_model
@pytest.mark.parametrize("context", CONTEXT_KINDS)
def test_every_context_equals_the_oracle_on_the_real_model(smollm2: HFModel, context: ContextKind) -> None:
    trees = planned(smollm2, context, ["2 + 2 = 4", "So 3"], ["3", "13"])
    wanted = [oracle(smollm2._model, tree) for tree in trees]
    assert_same(smollm2.logprobs(trees), wanted)
    assert_same([*smollm2.logprobs(trees[1:]), *smollm2.logprobs(trees[:1])], wanted[::-1])


@pytest.mark.parametrize("kind", [*TREE_MODELS, *PLAIN_MODELS])
@pytest.mark.parametrize("batch_tokens", [0, 1, 50, 130, 1000])
def test_any_batch_size_equals_the_oracle(kind: str, batch_tokens: int) -> None:
    """Trees whole and cut, side by side in rows; plain sequences alone and padded."""
    assert_same(hf(kind, batch_tokens=batch_tokens).logprobs(some_trees()), expected(kind))


@pytest.mark.parametrize("kind", [*TREE_MODELS, *PLAIN_MODELS])
def test_company_and_order_change_nothing(kind: str) -> None:
    model, trees = hf(kind, batch_tokens=150), some_trees()
    assert_same([model.logprobs([tree])[0] for tree in trees], expected(kind))
    assert_same(model.logprobs(trees[::-1]), expected(kind)[::-1])
    assert_same(model.logprobs([trees[0], trees[0]]), [expected(kind)[0]] * 2)
    assert model.logprobs([]) == []


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3"])
def test_eager_attention_equals_the_oracle(kind: str) -> None:
    model = hf(kind, attn_implementation="eager")
    assert model._model.config._attn_implementation == "eager"
    assert model._capable.no_tree is None
    assert_same(model.logprobs(some_trees()), expected(kind, attn_implementation="eager"))


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "exaone4-mixed"])
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2])
def test_where_the_window_begins_to_matter(kind: str, length: int) -> None:
    fork = np.array([*range(-1, length - 1), *range(length - 3, length - 2)])  # the last two tokens are siblings
    tree = TokenTree(np.arange(20, 21 + length), fork, np.arange(length + 1) >= length - 2)
    assert len(tree.path(length - 1)) == length
    assert_same(hf(kind).logprobs([tree, tree]), [oracle(tiny(kind), tree)] * 2)


def test_all_models_given_masks_by_layer_type_are_tested() -> None:
    models = [tiny(kind).config for kind in MIXED]
    assert {config.model_type for config in models} == _MASK_PER_LAYER_TYPE
    assert all(set(config.layer_types) == {"full_attention", "sliding_attention"} for config in models)


@pytest.mark.parametrize(("kind", "change"), [("gemma2", 30.0), ("granite", 2.0), ("cohere2", 0.5)])
def test_what_a_model_does_to_its_logits_counts(kind: str, change: float) -> None:
    """Caps and scales lie behind the head, so that a scorer that applied the head itself would miss them."""
    field = {"gemma2": "final_logit_softcapping", "granite": "logits_scaling", "cohere2": "logit_scale"}[kind]
    fields: dict[str, Any] = {field: change}
    usual, other = values(hf(kind).logprobs(some_trees())), hf(kind, **fields).logprobs(some_trees())
    assert_same(other, expected(kind, **fields))
    assert np.nanmax(np.abs(usual[0] - values(other)[0])) > 0.1


def test_bfloat16_stays_near() -> None:
    model = HFModel(tiny_model("llama").bfloat16(), byte_tokenizer(), name="llama")
    assert model._capable.no_tree is None
    assert model.describe() == {"model": "llama", "revision": None, "dtype": "bfloat16"}
    (got, *_), (want, *_) = values(model.logprobs(some_trees())), expected("llama")
    assert np.nanmean(np.abs(got - want)) < 0.1
    assert got.dtype == np.float64


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package itself had to say; Transformers remarks on tiny models."""
    return [record.message for record in caplog.records if record.name == "cpmi"]


# --- which way, and what it costs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TREE_MODELS)
def test_trees_share_one_forward_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = hf(kind, batch_tokens=1000)
    shapes: list[tuple[int, ...]] = []
    spy(monkeypatch, model._model, lambda ids, output: shapes.append(tuple(ids.shape)))
    results = model.logprobs(some_trees())
    fed = sum(len(_ancestors_of_scored(tree)) for tree in some_trees())
    assert shapes == [(1, fed)]
    assert sum(result.cost.tokens_scored for result in results) == fed
    assert [result.cost.tokens_scored > 0 for result in results] == [tree.scored.any() for tree in some_trees()]
    assert all((result.cost.seconds > 0) == (result.cost.tokens_scored > 0) for result in results)
    assert not notes(caplog)


def _ancestors_of_scored(tree: TokenTree) -> set[int]:
    return {above for node in np.flatnonzero(tree.scored) for above in tree.path(int(node))[:-1]}


def test_by_itself_a_cpu_takes_one_whole_tree_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not even the rounding of a tree's numbers depends on what stands beside it."""
    model = hf("llama")
    shapes: list[tuple[int, ...]] = []
    spy(monkeypatch, model._model, lambda ids, output: shapes.append(tuple(ids.shape)))
    together = values(model.logprobs(some_trees()))
    assert shapes == [(1, fed) for tree in some_trees() if (fed := len(_ancestors_of_scored(tree)))]
    for tree, logprobs in zip(some_trees(), together, strict=True):
        np.testing.assert_array_equal(values(model.logprobs([tree]))[0], logprobs)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_forward_pass_holds_no_more_tokens_than_asked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf(kind, batch_tokens=40)
    sizes: list[int] = []
    spy(monkeypatch, model._model, lambda ids, output: sizes.append(ids.numel()))
    results = model.logprobs(some_trees())
    assert 35 < max(sizes) <= 40
    assert sum(sizes) >= sum(result.cost.tokens_scored for result in results)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mamba", "recurrent layers cannot take a token tree"),
        ("gpt-neo", "its own attention code may not take a token tree"),
        ("exaone4-mixed", f"its sliding window of {WINDOW} tokens is shorter than a tree"),
    ],
)
def test_models_that_take_no_tree_say_so_once(kind: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = hf(kind)
    for _ in range(2):
        model.logprobs(some_trees())
    line = f"{kind}: {reason}; scoring plainly, one sequence per answer (same numbers, slower)"
    assert notes(caplog) == [line]


def test_a_model_of_an_unknown_mix_takes_trees_within_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf("exaone4-mixed")
    shapes: list[tuple[int, ...]] = []
    spy(monkeypatch, model._model, lambda ids, output: shapes.append(tuple(ids.shape)))
    shallow = random_tree(np.random.default_rng(1), 60, branching=0.5)
    assert int(shallow.depths().max()) + 1 <= WINDOW
    trees = [shallow, some_trees()[0]]
    results = model.logprobs(trees)
    assert shapes[0] == (1, len(_ancestors_of_scored(shallow)))
    assert_same(results, [oracle(tiny("exaone4-mixed"), tree) for tree in trees])


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_is_found_out(
    ignored: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny_model("llama")
    network.set_attn_implementation("eager")  # which is given a dense mask
    original = network.forward

    @functools.wraps(original)
    def deaf(input_ids: torch.Tensor, **inputs: Any) -> Any:
        return original(input_ids, **{key: value for key, value in inputs.items() if key != ignored})

    monkeypatch.setattr(network, "forward", deaf)
    model = HFModel(network, byte_tokenizer(), name="deaf")
    assert "deaf: a token tree changes its numbers by" in caplog.text
    assert_same(model.logprobs(some_trees()), expected("llama"))


def test_a_model_that_settles_its_attention_for_itself_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny_model("llama")
    original = network.forward

    @functools.wraps(original)
    def stubborn(input_ids: torch.Tensor, **inputs: Any) -> Any:
        network.config._attn_implementation = "sdpa"
        return original(input_ids, **inputs)

    monkeypatch.setattr(network, "forward", stubborn)
    model = HFModel(network, byte_tokenizer(), name="stubborn")
    assert "stubborn: a token tree changes its numbers by" in caplog.text
    assert_same(model.logprobs(some_trees()), expected("llama"))


def test_a_model_that_sees_what_follows_is_refused() -> None:
    with pytest.raises(InputError, match=r"^model bert is no causal language model"):
        hf("bert")


def test_a_model_that_computes_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``logits_to_keep`` every token fed has logits, so that they bound the batch."""
    network = tiny_model("llama")
    original, sizes = network.forward, []

    def everywhere(
        input_ids: torch.Tensor, attention_mask: Any = None, position_ids: Any = None, use_cache: bool = False
    ) -> Any:
        output = original(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)
        sizes.append(output.logits.shape[:2].numel())
        return output

    monkeypatch.setattr(network, "forward", everywhere)
    monkeypatch.setattr(forward, "_LOGITS_BYTES", 40 * VOCABULARY * 4)
    model = HFModel(network, byte_tokenizer(), name="llama")
    assert_same(model.logprobs(some_trees()), expected("llama"))
    assert max(sizes) <= 40
    assert len(sizes) > 3


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_logits_are_computed_for_few_tokens_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_LOGITS_BYTES", 30 * VOCABULARY * 4)
    monkeypatch.setattr(forward, "_CHUNK_BYTES", {"cpu": 3 * VOCABULARY * 4})
    model = hf(kind)
    trees = [*some_trees()[:3], chain(range(40), scored_from=10)]
    wanted = [oracle(tiny(kind), tree) for tree in trees]
    sizes: list[int] = []
    spy(monkeypatch, model._model, lambda ids, output: sizes.append(output.logits.shape[:2].numel()))
    assert_same(model.logprobs(trees), wanted)
    assert max(sizes) == 30


def test_memory_stays_bounded_with_a_large_vocabulary() -> None:
    """A trajectory of 2,000 tokens, nearly all scored, over 151k words: no more than 1.5 GB above the model."""
    high_water = Path("/proc/self/clear_refs")
    if not high_water.exists():
        pytest.skip("needs Linux's /proc to measure memory")
    model = hf("llama", vocab_size=151_936, max_position_embeddings=4096, num_hidden_layers=1)
    rng = np.random.default_rng(0)
    parents = [*range(-1, 399)]
    for trunk_node in range(399, 299, -1):  # a hundred branches of 16 tokens, the deepest first, as preorder wants it
        parents += [trunk_node, *range(len(parents), len(parents) + 15)]
    tree = TokenTree(rng.integers(0, 151_936, len(parents)), np.array(parents), np.arange(len(parents)) >= 1)
    high_water.write_text("5")
    before = _memory("VmRSS")
    (scored,) = values(model.logprobs([tree]))
    assert np.isfinite(scored[1:]).all()
    assert _memory("VmHWM") - before < 1.5e9


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mamba", "exaone4-mixed"])
def test_out_of_memory_halves_the_batch_and_goes_on(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = HFModel(tiny_model(kind), byte_tokenizer(), name=kind, batch_tokens=1000)
    limit_memory(monkeypatch, model._model, 35)
    assert_same(model.logprobs(some_trees()), expected(kind))
    assert "out of memory; going on with at most" in caplog.text
    caplog.clear()
    assert_same(model.logprobs(some_trees()), expected(kind))  # it has learned what fits
    assert "out of memory" not in caplog.text


def test_a_sequence_that_never_fits_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_model("llama"), byte_tokenizer(), name="llama")
    limit_memory(monkeypatch, model._model, 28)
    trees = some_trees()
    results = model.logprobs(trees)
    fed = [max((len(tree.path(int(node))) - 1 for node in np.flatnonzero(tree.scored)), default=0) for tree in trees]
    assert [result.error is None for result in results] == [length <= 28 for length in fed]
    failed = results[fed.index(max(fed))]
    assert failed.error == f"out of memory with a single sequence of {max(fed)} tokens"
    assert failed.logprobs is None
    for result, wanted in zip(results, expected("llama"), strict=True):
        if result.error is None:
            assert_same([result], [wanted])


def test_other_failures_are_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_model("llama"), byte_tokenizer(), name="llama")
    limit_memory(monkeypatch, model._model, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        model.logprobs(some_trees())


def test_running_out_of_memory_is_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)  # a petabyte: what torch itself says on this machine
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_tree_deeper_than_the_context_is_an_error_of_its_own(kind: str) -> None:
    fits, too_long = chain([5] * CONTEXT, CONTEXT - 3), chain([5] * (CONTEXT + 1), CONTEXT - 3)
    first, second, third = hf(kind).logprobs([fits, too_long, some_trees()[0]])
    assert second.error == f"too long: {CONTEXT + 1} tokens, the model's context holds {CONTEXT}"
    assert second.logprobs is None
    assert_same([first, third], [oracle(tiny(kind), fits), expected(kind)[0]])


def test_a_token_that_the_model_has_not_is_an_error_of_its_own() -> None:
    first, second = hf("llama").logprobs([chain([1, VOCABULARY, 2]), some_trees()[0]])
    assert first.error == f"the tokenizer's token {VOCABULARY} is not one of the model's {VOCABULARY}"
    assert_same([second], [expected("llama")[0]])


# --- truncation -----------------------------------------------------------------------------------------------------


def truncated_oracle(model: Any, tree: TokenTree, truncation: Truncation) -> FloatArray:
    """By hand: sort, keep the first k, and the first whose sum reaches p; the scored token is kept in any case."""
    logprobs = np.full(len(tree), np.nan)
    for node in np.flatnonzero(tree.scored).tolist():
        ids = tree.ids[tree.path(node)]
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids[None, :-1])).logits[0, -1]
        probabilities = logits.double().softmax(-1).tolist()
        kept: list[int] = []
        mass = 0.0
        for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
            if mass >= truncation.top_p or (truncation.top_k and len(kept) == truncation.top_k):
                break
            kept.append(token)
            mass += probabilities[token]
        total = sum(probabilities[token] for token in {*kept, int(ids[-1])})
        logprobs[node] = np.log(probabilities[int(ids[-1])] / total)
    return logprobs


@pytest.mark.parametrize("kind", ["llama", "mamba"])
@pytest.mark.parametrize(
    "truncation", [Truncation(top_k=1), Truncation(top_k=20), Truncation(top_p=0.8), Truncation(top_k=12, top_p=0.6)]
)
def test_truncation_renormalizes_over_the_likeliest(kind: str, truncation: Truncation) -> None:
    trees = some_trees()[:2]
    wanted = [truncated_oracle(tiny(kind), tree, truncation) for tree in trees]
    assert_same(hf(kind).logprobs(trees, truncation), wanted)
    assert np.nanmax(np.abs(wanted[0] - expected(kind)[0])) > 0.01


# --- tokenizers -----------------------------------------------------------------------------------------------------


def with_tokenizer(tokenizer: Any) -> HFModel:
    return HFModel(tiny("llama"), tokenizer, name="llama")


@pytest.mark.parametrize(
    ("tokenizer", "prefix"),
    [(byte_tokenizer(), ()), (byte_tokenizer(bos=True), (256,)), (metaspace_tokenizer(), (256,))],
    ids=["bytes", "bytes with BOS", "dummy prefix with BOS"],
)
def test_the_prefix_is_what_the_tokenizer_itself_puts_first(tokenizer: Any, prefix: tuple[int, ...]) -> None:
    model = with_tokenizer(tokenizer)
    assert model.prefix == prefix
    assert (*model.prefix, *model.encode("The answer", first=True)) == tuple(tokenizer("The answer")["input_ids"])


def test_no_space_comes_into_the_middle_of_a_sequence() -> None:
    tokenizer = metaspace_tokenizer()
    model = with_tokenizer(tokenizer)

    def tokens(text: str, *, first: bool = False) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens([*model.encode(text, first=first)]))

    assert tokens("The", first=True) == ["▁T", "h", "e"]
    assert tokens("The") == ["T", "h", "e"]
    assert tokens(" The") == ["▁T", "h", "e"]
    assert tokens("\nThe") == ["\n", "T", "h", "e"]
    assert tokens("") == []


def test_segments_of_merging_tokenizers_stay_apart() -> None:
    tokenizer = byte_tokenizer(merges=True)
    model = with_tokenizer(tokenizer)
    assert tokenizer.convert_ids_to_tokens([*model.encode("So 3.\n\n")]) == ["S", "o", "Ġ", "3", ".ĊĊ"]
    assert tokenizer.convert_ids_to_tokens([*model.encode("\n\n")]) == ["ĊĊ"]
    assert model.encode("é") == model.encode("é", first=True)
    assert tokenizer.decode([*model.encode("naïve ∑ 数")]) == "naïve ∑ 数"


@pytest.mark.parametrize(
    "tokenizer",
    [byte_tokenizer(), byte_tokenizer(bos=True, merges=True), metaspace_tokenizer()],
    ids=["bytes", "merged separators", "dummy prefix"],
)
def test_an_answer_has_the_same_tokens_with_and_without_a_step(tokenizer: Any) -> None:
    model = with_tokenizer(tokenizer)
    steps, contexts = ["So 2.", "\n\nThen 3"], [(), (0,), (0, 1)]
    (plan,) = plan_scoring("Q?", steps, ["42"], contexts, [Template("{question}\n\n", "The answer: {answer}")], model)
    targets = [plan.tree.ids[spans[0]].tolist() for spans in plan.spans[0].values()]
    assert targets == [[*model.encode("The answer:"), *model.encode(" 42")]] * 3
    opening = plan.tree.ids[plan.tree.path(int(plan.spans[0][()][0][0]))][:-1].tolist()
    assert opening == [*model.prefix, *model.encode("Q?\n\n", first=True)]
    longest = plan.tree.ids[plan.tree.path(int(plan.spans[0][0, 1][0][-1]))]
    assert tokenizer.decode(longest, skip_special_tokens=True) == "Q?\n\nSo 2.\n\nThen 3\n\nThe answer: 42"


def test_half_of_a_surrogate_pair_does_not_stop_a_run() -> None:
    model = with_tokenizer(byte_tokenizer())
    assert model.encode("a\ud83db") == model.encode("a\ufffdb")
    assert model.encode("a😀b") != model.encode("a\ufffdb")


@pytest.mark.real_model
def test_the_real_tokenizer_opens_with_nothing(smollm2: HFModel) -> None:
    assert smollm2.prefix == ()
    assert smollm2.encode("The answer") == smollm2.encode("The answer", first=True)


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(folder)
    byte_tokenizer(bos=True).save_pretrained(folder)
    return folder


def test_a_saved_model_gives_the_same_numbers(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = open_model(ModelSettings(f"hf:{saved}", device="cpu"))
    assert_same(model.logprobs(some_trees()), expected("llama"))
    assert model.prefix == (256,)
    assert model.describe()["dtype"] == "float32"
    assert capfd.readouterr().err == ""


def test_the_revision_tells_checkpoints_apart(saved: Path, tmp_path: Path) -> None:
    def revision(folder: Path) -> object:
        return open_model(ModelSettings(f"hf:{folder}")).describe()["revision"]

    copy = shutil.copytree(saved, tmp_path / "copy")
    assert revision(copy) == revision(saved)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert revision(copy) != revision(saved)


def test_a_model_with_code_of_its_own_is_refused_unasked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would ask on the terminal whether to run the code, and a run would wait for the answer."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    own = '{"model_type": "nonesuch", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}'
    (tmp_path / "config.json").write_text(own, encoding="utf-8")
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", answer)
    assert "contains custom code" in refused(f"hf:{tmp_path}")
    assert not asked


def refused(name: str, **settings: Any) -> str:
    with pytest.raises(InputError) as raised:
        open_model(ModelSettings(name, **settings))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_loaded_is_one_line(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(f"hf:{tmp_path / 'none'}") == f"model hf:{tmp_path / 'none'}: no such folder"
    assert refused("hf:../none") == "model hf:../none: no such folder"
    assert refused(f"hf:{tmp_path / 'none.gguf'}").endswith("none.gguf: no such file")
    assert "holds no config.json" in refused(f"hf:{tmp_path}")
    assert "is a file; name the folder" in refused(f"hf:{saved / 'config.json'}")
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    assert "not a GGUF file" in refused(f"hf:{tmp_path / 'broken.gguf'}")
    assert "couldn't connect" in refused("hf:nobody/no-such-model")
    assert "dtype 'int3' is unknown; use one of auto, float32" in refused(f"hf:{saved}", dtype="int3")
    assert "device 'nonesuch' cannot be used" in refused(f"hf:{saved}", device="nonesuch")
    assert capfd.readouterr().err == ""


def damaged(saved: Path, folder: Path, **files: str | bytes) -> str:
    shutil.copytree(saved, folder)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return refused(f"hf:{folder}")


def test_damaged_checkpoints_are_one_line(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = (saved / "config.json").read_text(encoding="utf-8")
    weights = (saved / "model.safetensors").read_bytes()
    layers, hidden = '"num_hidden_layers": 2', '"hidden_size": 32'
    assert layers in config
    assert hidden in config
    assert "not a valid JSON" in damaged(saved, tmp_path / "a", config__json="{")
    assert "cannot be loaded" in damaged(saved, tmp_path / "b", model__safetensors=weights[:3000])
    assert "cannot be loaded" in damaged(saved, tmp_path / "c", tokenizer__json="{}")
    more = config.replace(layers, '"num_hidden_layers": 3')
    assert "it has no weights model.layers.2." in damaged(saved, tmp_path / "d", config__json=more)
    wide = config.replace(hidden, '"hidden_size": 64')
    assert "does not fit its weights" in damaged(saved, tmp_path / "e", config__json=wide)
    assert capfd.readouterr().err == ""
    assert not caplog.records  # Transformers' tables of missing weights


def test_a_reward_model_is_no_language_model(saved: Path, tmp_path: Path) -> None:
    """Transformers would give it a random head, and the scores of that would look like scores."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    reward_model = LlamaForSequenceClassification(tiny("llama").config)  # type: ignore[no-untyped-call]
    reward_model.save_pretrained(tmp_path)
    assert refused(f"hf:{tmp_path}").endswith("is no causal language model: it has no weights lm_head.weight")


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    network = tiny_model("llama", tie_word_embeddings=True)
    network.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = open_model(ModelSettings(f"hf:{tmp_path}", dtype="float32"))
    assert_same(model.logprobs(some_trees()[:1]), [oracle(network, some_trees()[0])])


@pytest.mark.parametrize("package", ["torch", "accelerate", "transformers"])
def test_a_missing_package_is_the_line_to_type(package: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = importlib.import_module

    def without(name: str, *arguments: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    assert refused(f"hf:{saved}") == (
        f"this needs the Python package {package!r}, which is not installed; run: pip install 'cpmi[hf]'"
    )


@pytest.mark.real_model
def test_a_gguf_file_by_its_path(smollm2: HFModel, capfd: pytest.CaptureFixture[str]) -> None:
    model = open_model(ModelSettings(f"hf:{embedded_weights()}", device="cpu"))
    assert model.describe() == smollm2.describe() | {"model": f"hf:{embedded_weights()}", "dtype": "bfloat16"}
    assert capfd.readouterr().err == ""
    tree = chain(model.encode("The capital of France is Paris", first=True))
    (half,), (full,) = values(model.logprobs([tree])), values(smollm2.logprobs([tree]))
    np.testing.assert_allclose(half, full, atol=0.5)
    assert full[-1] > -2


def test_the_revision_of_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers 5.24 no longer says it in the configuration; the place in the hub's cache does."""
    from cpmi.models.loading import revision_of

    commit = "0123456789abcdef0123456789abcdef01234567"
    found = tmp_path / "models--org--name" / "snapshots" / commit / "config.json"
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda *_, **__: str(found))
    assert revision_of("org/name") == commit
    assert revision_of("org/name/model-q8.gguf") == f"{commit}/model-q8.gguf"
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda *_, **__: None)
    assert revision_of("org/name") is None
    (tmp_path / "config.json").write_text("{}")
    assert len(revision_of(str(tmp_path)) or "") == 16
