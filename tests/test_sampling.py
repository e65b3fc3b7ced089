"""Sampling in batches with shared beginnings gives what sampling alone gives, whatever the model and the memory."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from cpmi.models import decoding
from cpmi.models.hf import HFModel
from cpmi.models.sampling import Penalty, Row
from cpmi.models.shares import shares
from cpmi.protocols import Prompt, Sampled, SamplingParams
from tiny_models import CONFIGS, CONTEXT, VOCABULARY, WINDOW, byte_tokenizer, metaspace_tokenizer, tiny_model

KINDS = [kind for kind in CONFIGS if kind != "bert"]
BATCHED = [kind for kind in KINDS if kind != "mamba"]
STEPS = ["Tom has 2 apples.", "He buys 3 more.", "Now 2 + 3 = 5.", "He eats 1."]
PARAMS = SamplingParams(max_tokens=9, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, stop=("\n",))


@functools.cache
def tiny(kind: str, **changes: Any) -> Any:
    return tiny_model(kind, **changes)


def hf(kind: str, **changes: Any) -> HFModel:
    return HFModel(tiny(kind, **changes), byte_tokenizer(), name=kind)


def prefixes(steps: Sequence[str] = STEPS, seed: int = 0) -> list[Prompt]:
    """Every prefix of a trajectory, from none of its steps to all of them."""
    return [Prompt("Q: how many?\n" + "".join(steps[:i]), seed + i) for i in range(len(steps) + 1)]


def plainly(model: HFModel) -> HFModel:
    """The same with ``generate``, one prompt at a time and nothing shared."""
    model.__dict__["_no_batch"] = "told so"
    return model


def completions(results: Sequence[Sampled]) -> list[list[tuple[str, str]]]:
    assert [result.error for result in results] == [None] * len(results)
    return [[(each.text, each.finish_reason) for each in result.completions] for result in results]


def watch(
    monkeypatch: pytest.MonkeyPatch, model: HFModel, check: Callable[[torch.Tensor], None] = lambda ids: None
) -> list[tuple[int, ...]]:
    """The shapes of what the model will be fed from now on, each passed by ``check`` before; its probe is over."""
    _ = model._no_batch
    original = model._model.forward
    shapes: list[tuple[int, ...]] = []

    @functools.wraps(original)
    def seen(input_ids: torch.Tensor, **inputs: Any) -> Any:
        check(input_ids)
        shapes.append(tuple(input_ids.shape))
        return original(input_ids, **inputs)

    monkeypatch.setattr(model._model, "forward", seen)
    return shapes


def limit_rows(monkeypatch: pytest.MonkeyPatch, model: HFModel, rows: int) -> list[tuple[int, ...]]:
    """The model's forward pass runs out of memory with more rows than that."""

    def check(ids: torch.Tensor) -> None:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return watch(monkeypatch, model, check)


def prompt_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass over a prompt computes from now on."""
    original = decoding.Trunk._feed
    counts: list[int] = []

    def counted(self: decoding.Trunk, tokens: list[int]) -> None:
        original(self, tokens)
        counts.append(len(tokens))

    monkeypatch.setattr(decoding.Trunk, "_feed", counted)
    return counts


# --- batches and shared beginnings change nothing -------------------------------------------------------------------


@pytest.mark.parametrize("kind", BATCHED)
def test_batched_equals_one_at_a_time(kind: str) -> None:
    """Texts of unlike length, longer than the windows, rows that end early and rows that come later."""
    model, prompts = hf(kind), [*prefixes(), *prefixes(["Ann ran.", "So 4."], seed=50), *prefixes(seed=9)[2:4]]
    assert model._no_batch is None
    wanted = completions(plainly(hf(kind)).sample(prompts, 3, PARAMS))
    assert completions(model.sample(prompts, 3, PARAMS)) == wanted
    assert len({text for texts in wanted for text in texts}) > len(prompts)
    model._batch_limits.rows = 4
    assert completions(model.sample(prompts[::-1], 3, PARAMS)) == wanted[::-1]


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt-oss"])
def test_a_text_that_outgrows_the_window(kind: str) -> None:
    params = SamplingParams(max_tokens=3 * WINDOW)
    prompts = [Prompt("Q:", 1), Prompt("Q: 1", 2), Prompt("Q: 1" * 9, 3)]
    assert completions(hf(kind).sample(prompts, 2, params)) == completions(plainly(hf(kind)).sample(prompts, 2, params))


def test_a_prompt_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf("gemma3")
    wanted = completions(model.sample(prefixes(), 2, PARAMS))
    model._batch_limits.chunk = 5
    shapes = watch(monkeypatch, model)
    assert completions(model.sample(prefixes(), 2, PARAMS)) == wanted
    assert max(width for _, width in shapes) == 5


def test_a_seed_and_a_number_decide_alone() -> None:
    model, prompts = hf("llama"), prefixes()
    wanted = completions(model.sample(prompts, 4, PARAMS))
    assert [completions(model.sample([prompt], 4, PARAMS))[0] for prompt in prompts] == wanted
    assert [texts[:2] for texts in wanted] == completions(model.sample(prompts, 2, PARAMS))
    other = completions(model.sample([Prompt(prompt.text, prompt.seed + 99) for prompt in prompts], 4, PARAMS))
    assert all(a != b for a, b in zip(other, wanted, strict=True))


@pytest.mark.real_model
def test_batched_equals_one_at_a_time_on_the_real_model(smollm2: HFModel) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.7, top_p=0.9, stop=("\n\n",))
    prompts = prefixes()
    together = completions(smollm2.sample(prompts, 2, params))
    assert [completions(smollm2.sample([prompt], 2, params))[0] for prompt in prompts[1:3]] == together[1:3]
    alone = HFModel(smollm2._model, smollm2._tokenizer._tokenizer, name="alone")
    assert completions(plainly(alone).sample(prompts[:2], 2, params)) == together[:2]


# --- which way ------------------------------------------------------------------------------------------------------


def test_a_recurrent_model_is_sampled_plainly_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = hf("mamba")
    caplog.clear()
    together = completions(model.sample(prefixes(), 2, PARAMS))
    assert [completions(model.sample([prompt], 2, PARAMS))[0] for prompt in prefixes()] == together
    reason = "its recurrent layers keep no state per token"
    said = [record.message for record in caplog.records if record.name == "cpmi"]
    assert said == [f"mamba: {reason}; sampling one prompt at a time (same completions, slower)"]


def test_models_of_other_kinds_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_model("qwen2-mixed")
    assert decoding.why_not_batched(network) is None
    network.config.layer_types = ["chunked_attention", "full_attention"]
    assert decoding.why_not_batched(network) == "it has layers of the kind chunked_attention"
    monkeypatch.setattr(network, "forward", lambda input_ids, past_key_values=None: None)
    assert decoding.why_not_batched(network) == "its forward pass takes no attention_mask and no position_ids"


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_is_found_out(ignored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_model("gpt2")
    original = network.forward

    @functools.wraps(original)
    def deaf(input_ids: torch.Tensor, **inputs: Any) -> Any:
        return original(input_ids, **{key: value for key, value in inputs.items() if key != ignored})

    monkeypatch.setattr(network, "forward", deaf)
    model = HFModel(network, byte_tokenizer(), name="deaf")
    assert str(model._no_batch).startswith("decoding in a batch changes its probabilities by")
    assert completions(model.sample(prefixes(), 1, PARAMS)) == completions(hf("gpt2").sample(prefixes(), 1, PARAMS))


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_equals_the_librarys_generate(kind: str, penalty: float) -> None:
    """A repetition penalty counts a row's own prompt and completion, and none of the padding."""
    model, prompts = hf(kind), prefixes()
    params = SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=penalty)
    sampled = completions(model.sample(prompts, 2, params))
    for prompt, texts in zip(prompts, sampled, strict=True):
        ids = torch.tensor([model.encode(prompt.text, first=True)])
        output = tiny(kind).generate(
            ids, max_new_tokens=20, do_sample=False, repetition_penalty=penalty, pad_token_id=0
        )
        assert [text for text, _ in texts] == [model._tokenizer.decode(output[0, ids.shape[1] :].tolist())] * 2


SHAPES = [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 30, "top_p": 0.9}]


@pytest.mark.parametrize("how", SHAPES, ids=str)
def test_draws_follow_the_models_own_probabilities(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tokens of 4,000 completions against the softmax, worked out here with plain arithmetic."""
    model = hf("llama")
    ids = model.encode("Q: 1 + 1 =", first=True)
    with torch.inference_mode():
        logits = tiny("llama")(torch.tensor([ids])).logits[0, -1].double()
    wanted = truncated((logits / how.get("temperature", 1.0)).softmax(-1), how.get("top_k", 0), how.get("top_p", 1.0))
    drawn = Counter[int]()
    monkeypatch.setattr(
        "cpmi.models.sampling.Ending.completion", lambda self, row: drawn.update(row.sampled), raising=True
    )
    model.sample([Prompt("Q: 1 + 1 =", 3)], 4000, SamplingParams(max_tokens=1, **how))
    assert drawn.total() == 4000
    assert all(wanted[token] > 0 for token in drawn)
    expected = wanted * 4000
    common = expected >= 5
    counts = torch.tensor([drawn[token] for token in range(VOCABULARY)], dtype=torch.float64)
    rest = torch.tensor([(counts * ~common).sum(), (expected * ~common).sum() + 1e-9])
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum() + (rest[0] - rest[1]) ** 2 / (rest[1] + 1)
    freedom = int(common.sum())
    assert freedom > 2
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def truncated(probabilities: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """What the likeliest k, and of them the fewest that make up p, leave of a distribution."""
    left = probabilities.clone()
    if top_k:
        left[left < left.sort(descending=True).values[top_k - 1]] = 0
        left /= left.sum()
    ordered, order = left.sort(descending=True)
    left[order[ordered.cumsum(0) - ordered >= top_p]] = 0
    return left / left.sum()


def test_logits_that_are_no_numbers_are_an_error_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = hf("llama"), plainly(hf("llama"))
    (tilde,) = model.encode("~")
    assert model._no_batch is None
    original = model._model.forward

    @functools.wraps(original)
    def broken(input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = original(input_ids, **inputs)
        output.logits[(input_ids == tilde).any(-1)] = float("nan")
        return output

    monkeypatch.setattr(model._model, "forward", broken)  # which is that of both
    for each, temperature in ((model, 0.0), (model, 1.0), (plain, 0.0), (plain, 1.0)):
        params = SamplingParams(max_tokens=2, temperature=temperature, top_k=1)
        bad, good = each.sample([Prompt("a~", 0), Prompt("ab", 0)], 3, params)
        assert (bad.completions, bad.error) == ((), "the model's logits are not numbers (NaN)")
        assert len(good.completions) == 3


# --- what it costs, and when it is told -----------------------------------------------------------------------------


def test_a_shared_beginning_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = hf("llama"), prefixes()
    assert model._no_batch is None
    texts = [model.encode(prompt.text, first=True) for prompt in prompts]
    counts = prompt_tokens(monkeypatch)
    results = model.sample(prompts[::-1], 3, SamplingParams(max_tokens=4, temperature=0.0))[::-1]
    assert sum(counts) == len(texts[-1])
    paid = [result.cost.tokens_scored for result in results]
    assert sum(paid) == sum(counts)
    assert paid == sorted(paid)
    assert len(texts[0]) // 5 <= paid[0] + 1 < len(texts[0])


def test_costs_add_up_to_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (hf("llama"), plainly(hf("llama"))):
        shapes = watch(monkeypatch, model)
        results = model.sample(prefixes(), 3, PARAMS)
        generated = sum(result.cost.tokens_generated for result in results)
        lengths = [len(text) for texts in completions(results) for text, _ in texts]
        assert sum(lengths) <= generated <= 3 * len(results) * PARAMS.max_tokens
        if model._no_batch is None:  # each sampled token but the last of a row is fed again
            fed = sum(rows * width for rows, width in shapes)
            assert fed == generated - 3 * len(results) + sum(result.cost.tokens_scored for result in results)
        else:
            wanted = [3 * len(model.encode(prompt.text, first=True)) for prompt in prefixes()]
            assert [result.cost.tokens_scored for result in results] == wanted
        assert all(result.cost.seconds > 0 for result in results)
        monkeypatch.undo()


def test_seconds_add_up_to_the_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    read: list[int] = []

    def tick() -> float:
        read.append(next(clock))
        return float(read[-1])

    model = hf("llama")
    assert model._no_batch is None
    monkeypatch.setattr("cpmi.models.sampling.time.perf_counter", tick)
    results = model.sample(prefixes(), 3, PARAMS)
    assert sum(result.cost.seconds for result in results) == pytest.approx(read[-1] - read[0])


def test_no_step_is_spent_on_rows_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(monkeypatch, ALPHABET)
    model._batch_limits.rows = 2
    assert model._no_batch is None
    shapes = watch(monkeypatch, model)
    assert [texts[0][0] for texts in completions(model.sample([Prompt(t, 0) for t in "gfa"], 1, SamplingParams()))] == [
        "h",
        "gh",
        "bcdefgh",
    ]
    assert sorted(shapes) == sorted([(1, 1)] * 3 + [(2, 1)] * 3 + [(1, 1)] * 4)  # "a" beside "f", then beside "g"


def test_every_prompt_is_told_once_and_as_soon_as_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(monkeypatch, ALPHABET)
    told: list[tuple[int, Sampled]] = []
    prompts = [Prompt("a", 0), Prompt("h", 0), Prompt("x" * CONTEXT, 0), Prompt("e", 0)]
    results = model.sample(prompts, 2, SamplingParams(), lambda index, sampled: told.append((index, sampled)))
    assert [index for index, _ in told] == [2, 1, 3, 0]
    assert all(results[index] is sampled for index, sampled in told)
    assert model.sample([], 2, SamplingParams()) == []


def test_shares_of_beginnings() -> None:
    planned = {share.prompt: (share.planned, share.tokens) for share in shares([[1, 2, 3, 4], [9], [1, 2], [1, 2]])}
    assert {planned[2], planned[3]} == {(2, 1), (0, 0)}  # a beginning of 2 tokens for three of them: 2/3 each
    assert planned[0] == (2, 3)
    assert planned[1] == (1, 1)
    assert shares([]) == []


# --- out of memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_out_of_memory_halves_the_rows(
    plain: bool, rows: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = plainly(hf("llama")) if plain else hf("llama")
    wanted = completions(hf("llama").sample(prefixes(), 4, PARAMS))
    shapes = limit_rows(monkeypatch, model, rows)
    counts = prompt_tokens(monkeypatch)
    results = model.sample(prefixes(), 4, PARAMS)
    assert completions(results) == wanted
    assert rows // 2 < max(count for count, _ in shapes) <= rows
    assert ("llama: out of memory; going on with at most" in caplog.text) == (rows < 4 or not plain)
    if not plain:
        assert sum(counts) == sum(result.cost.tokens_scored for result in results)
        assert model._batch_limits.rows <= rows
    limit = model._batch_limits.rows
    assert completions(model.sample(prefixes(), 4, PARAMS)) == wanted
    assert model._batch_limits.rows == limit


@pytest.mark.parametrize("plain", [False, True])
def test_what_does_not_fit_alone_is_an_error(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plainly(hf("llama")) if plain else hf("llama")
    long = model.encode("~", first=True)[0]

    def check(ids: torch.Tensor) -> None:
        if (ids == long).any():
            raise torch.OutOfMemoryError("CUDA out of memory")

    watch(monkeypatch, model, check)
    told: list[int] = []
    good, bad = model.sample([Prompt("ab", 1), Prompt("a~", 1)], 3, PARAMS, lambda index, _: told.append(index))
    assert bad.error == "out of memory with a single completion, at 2 tokens"
    assert bad.completions == ()
    assert len(good.completions) == 3
    assert sorted(told) == [0, 1]


@pytest.mark.parametrize("plain", [False, True])
def test_other_errors_are_raised(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plainly(hf("llama")) if plain else hf("llama")

    def fail(ids: torch.Tensor) -> None:
        raise RuntimeError("device-side assert")

    watch(monkeypatch, model, fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        model.sample(prefixes(), 2, PARAMS)


def test_all_tokens_of_a_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf("llama")
    wanted = completions(model.sample(prefixes(), 3, PARAMS))
    longest = len(model.encode(prefixes()[-1].text, first=True)) + PARAMS.max_tokens
    model._batch_limits.tokens = 2 * longest
    shapes = watch(monkeypatch, model)
    assert completions(model.sample(prefixes(), 3, PARAMS)) == wanted
    assert 2 <= max(rows for rows, _ in shapes) < 2 * longest // len(model.encode(prefixes()[0].text, first=True))
    model._batch_limits.tokens = 1
    shapes.clear()
    assert completions(model.sample(prefixes(), 3, PARAMS)) == wanted
    assert max(rows for rows, _ in shapes) == 1


def test_prompts_that_cannot_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf("llama")
    empty, good = model.sample([Prompt("", 0), Prompt("a", 0)], 2, PARAMS)
    assert empty.error == "an empty prompt, and the model has no token that opens a text"
    assert len(good.completions) == 2
    monkeypatch.setattr(model, "_vocabulary", 50)
    (unknown,) = model.sample([Prompt("z~", 0)], 2, PARAMS)
    assert str(unknown.error).startswith("the tokenizer's token ")


# --- sampling -------------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, script: dict[str, str], **habits: Any) -> HFModel:
    """A model after whose last letter one of the letters that the script names follows, the first a little likelier.

    ``$`` ends the text; a letter that the script does not name is followed by itself. ``habits``: what the checkpoint
    itself says about sampling.
    """
    network = tiny_model("llama")
    network.generation_config = GenerationConfig(eos_token_id=257, **habits)  # type: ignore[no-untyped-call]
    original = network.forward

    def id_of(letter: str) -> int:
        return 257 if letter == "$" else byte_tokenizer().get_vocab()[letter]

    following = {id_of(letter): [id_of(each) for each in next_ones] for letter, next_ones in script.items()}

    @functools.wraps(original)
    def play(input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = original(input_ids, **inputs)
        for row, logits in zip(input_ids.tolist(), output.logits, strict=True):
            logits.fill_(-1e4)
            likely = following.get(row[-1], [row[-1]])
            logits[:, likely] = -0.01 * torch.arange(len(likely))
        return output

    model = HFModel(network, byte_tokenizer(), name="scripted")
    monkeypatch.setattr(network, "forward", play)
    return model


ALPHABET = {letter: chr(ord(letter) + 1) for letter in "abcdefg"} | {"h": "$"}


def sample_one(
    model: HFModel, text: str, n: int = 1, seed: int = 0, **params: Any
) -> tuple[list[tuple[str, str]], int]:
    (sampled,) = model.sample([Prompt(text, seed)], n, SamplingParams(**params))
    assert sampled.cost.seconds > 0
    return [(each.text, each.finish_reason) for each in sampled.completions], sampled.cost.tokens_generated


def test_a_completion_ends_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(monkeypatch, ALPHABET)
    assert sample_one(model, "ab") == ([("cdefgh", "stop")], 7)  # the token that ends the text was sampled too
    assert sample_one(model, "ab", max_tokens=3) == ([("cde", "length")], 3)
    assert sample_one(model, "ab", stop=("fg",)) == ([("cde", "stop")], 5)
    assert sample_one(model, "ab", stop=("gh", "e", "ef")) == ([("cd", "stop")], 3)
    assert sample_one(model, "ab", stop=("bc",), max_tokens=4) == ([("cdef", "length")], 4)  # b is the prompt's
    assert sample_one(model, "ab", stop=("c",)) == ([("", "stop")], 1)


def test_a_completion_says_what_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(monkeypatch, ALPHABET)
    for stop, limit, said in (((), 20, ""), (("fg",), 20, "fg"), (("gh", "e", "ef"), 20, "e"), (("xy",), 3, "")):
        (sampled,) = model.sample([Prompt("ab", 0)], 1, SamplingParams(max_tokens=limit, stop=stop))
        assert sampled.completions[0].stop_text == said


def test_tokens_are_counted_per_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that end sooner are filled up to the longest; the filling is no part of the text or the cost."""
    model = scripted(monkeypatch, {"a": "xyz", "x": "$", "z": "w"})  # ax$  ayyyyyyyy  azwwwww
    completions, tokens = sample_one(model, "a", n=20, max_tokens=8, stop=("www",))
    assert {text for text, _ in completions} == {"x", "yyyyyyyy", "z"}
    spent = {"x": ("stop", 2), "yyyyyyyy": ("length", 8), "z": ("stop", 4)}
    assert all(reason == spent[text][0] for text, reason in completions)
    assert tokens == sum(spent[text][1] for text, _ in completions)


def test_a_seed_repeats_whatever_stands_beside_it() -> None:
    model = hf("llama")
    params = SamplingParams(max_tokens=6)
    prompt, twin, other = Prompt("2 + 2 =", 7), Prompt("2 + 2 =", 8), Prompt("So", 7)
    (alone,) = model.sample([prompt], 3, params)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    together = model.sample([other, twin, prompt], 3, params)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert together[2].completions == alone.completions
    assert together[1].completions != alone.completions
    assert len(set(alone.completions)) == 3


def test_temperature_zero_takes_the_likeliest() -> None:
    model = hf("llama")
    ids = list(model.encode("2 + 2 ="))
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(tiny("llama")(torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = byte_tokenizer().decode(ids[7:])
    for seed in (1, 2):
        assert sample_one(model, "2 + 2 =", seed=seed, temperature=0.0, top_p=0.5, top_k=3, max_tokens=8)[0] == [
            (wanted, "length")
        ]


def test_the_parameters_decide_and_not_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints bring sampling habits of their own, and Transformers a top_k of 50 where nobody says otherwise."""
    printable = "".join(chr(code) for code in range(33, 127) if chr(code) != "$")
    habits = {"top_k": 1, "temperature": 0.01, "repetition_penalty": 9.0, "suppress_tokens": [257], "min_new_tokens": 3}
    model = scripted(monkeypatch, {"a": printable, "b": "$"}, do_sample=True, **habits)
    completions, _ = sample_one(model, "a", n=600, max_tokens=1)
    assert len(set(completions)) > 60
    assert sample_one(model, "b") == ([("", "stop")], 1)
    assert len(set(sample_one(model, "a", n=30, max_tokens=1, top_k=1)[0])) == 1
    assert len(set(sample_one(model, "a", n=99, max_tokens=1, top_k=2)[0])) == 2


def test_a_dummy_prefix_takes_no_space_off_a_completion() -> None:
    model = HFModel(tiny("llama"), tokenizer := metaspace_tokenizer(), name="llama")
    ids = [tokenizer.get_vocab()[token] for token in ("▁", "4", "▁T")]
    assert tokenizer.decode(ids) == "4 T"
    assert model._tokenizer.decode(ids) == " 4 T"
    assert model._tokenizer.decode([]) == ""


def test_sampling_ends_with_the_context() -> None:
    model = hf("gpt2")
    assert sample_one(model, "x" * (CONTEXT - 2), max_tokens=9)[1] == 2
    (sampled,) = model.sample([Prompt("x" * CONTEXT, 0)], 2, SamplingParams(max_tokens=9))
    assert sampled == Sampled((), error=f"too long: {CONTEXT} tokens leave no room in the model's context of {CONTEXT}")


def test_the_penalty_is_that_of_transformers_whatever_rows_come_and_go() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = Penalty(1.3), RepetitionPenaltyLogitsProcessor(1.3)
    rows = [Row(0, rng.integers(0, 50, rng.integers(1, 9)).tolist(), 1, 99, str(i)) for i in range(4)]
    for step in range(30):
        scores = torch.tensor(rng.normal(size=(len(rows), 50)), dtype=torch.float32)
        expected = torch.cat([theirs(torch.tensor([row.tokens]), scores[i : i + 1]) for i, row in enumerate(rows)])
        assert torch.equal(ours(scores, rows), expected)
        if step % 7 == 3:  # as when memory ran out and a step is done again
            assert torch.equal(ours(scores, rows), expected)
        for row in rows:
            row.tokens.append(int(rng.integers(0, 50)))
        if step % 3 == 1:
            rows.pop(int(rng.integers(len(rows))))
        if step % 4 == 1 or not rows:
            rows += [Row(0, rng.integers(0, 50, 5).tolist(), 1, 99, f"new {step}") for _ in range(2)]
