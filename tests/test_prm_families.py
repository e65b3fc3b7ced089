"""Public process reward models, as tiny random ones of their shapes, score as their own scripts would score them.

Each oracle tokenizes as the model's card does and runs one forward pass for each step prefix, nothing batched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cpmi.errors import InputError
from cpmi.prm.families import FAMILIES
from cpmi.prm.model import PRM
from cpmi.records import StepRewards, Trajectory
from tiny_models import BEGIN, CONFIGS, END, UNKNOWN, byte_tokenizer, metaspace_tokenizer, tiny_model

ROOM = 1024  # tokens of context: the tokenizers know single bytes, and the families' openings are long
SOME = (
    Trajectory("What is 2+2-1?", ("2 + 2 = 4.", "4 - 1 = 3.", "So the answer is 3.")),
    Trajectory("Name a prime.", ("7",)),
    Trajectory("What is 2+2-1?", ("2 + 2 = 4.", "4 - 1 = 5.", "So the answer is 5.", "Check: 5 is odd.")),
    Trajectory("Tom has 3 apples and buys 4. How many?", ("He has 3.", "3 + 4 = 7.")),
)
NO_STEPS = Trajectory("Why?", ())

Score = Callable[[str, Sequence[str]], float]  # of the last of some steps, as the model's own script computes it


def scores_of(records: Sequence[StepRewards]) -> list[tuple[float, ...]]:
    assert [record.error for record in records] == [None] * len(records)
    return [record.rewards for record in records]


def by_prefix(score: Score, trajectories: Sequence[Trajectory] = SOME) -> list[list[float]]:
    with torch.inference_mode():
        return [
            [score(each.question, each.steps[: count + 1]) for count in range(len(each.steps))] for each in trajectories
        ]


def assert_same(got: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> None:
    assert np.ptp(np.concatenate(wanted)) > 0.05  # an oracle that says one thing to all steps tests nothing
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def assert_scores(folder: Path, score: Score, family: str | None = None) -> PRM:
    """Compared with the oracle: all in one call, in padded batches, one at a time, and in another order."""
    prm = PRM.from_pretrained(str(folder), family=family, device="cpu")
    wanted = by_prefix(score)
    assert_same(scores_of(prm.rewards(SOME)), wanted)
    assert_same(scores_of(prm.rewards(SOME[::-1])), wanted[::-1])
    assert_same([scores_of(prm.rewards([each]))[0] for each in SOME], wanted)
    for batch_tokens in (1, 150, 400):
        other = PRM.from_pretrained(str(folder), family=family, device="cpu", batch_tokens=batch_tokens)
        assert_same(scores_of(other.rewards(SOME)), wanted)
    return prm


def tiny(class_name: str, kind: str, **changes: Any) -> Any:
    """A random model of one of ``tiny_models.CONFIGS`` with any head, in float32."""
    config_class, fields = CONFIGS[kind]
    config = getattr(transformers, config_class)(**fields | {"max_position_embeddings": ROOM} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config)
        for weight in model.parameters():
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=0.5, std=0.3)
    return model.eval()


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def softmax_of(logits: torch.Tensor, place: int) -> float:
    return float(logits.float().softmax(-1)[place])


# --- TRL's PRMTrainer -----------------------------------------------------------------------------------------------


def trl_script(model: Any, tokenizer: Any) -> Score:
    """``PRMTrainer.tokenize_row``: all pieces by themselves; a first token wherever the tokenizer has one."""

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def score(question: str, steps: Sequence[str]) -> float:
        ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids += plain(question)
        for step in steps:
            ids += plain(step) + plain("\n")
        return softmax_of(model(torch.tensor([ids])).logits[0, -1], 1)

    return score


def without_bos() -> Any:
    """As Qwen's: there is no first token."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "class_name", "tokenizer"),
    [
        ("llama", "LlamaForTokenClassification", byte_tokenizer(bos=True)),
        ("qwen2", "Qwen2ForTokenClassification", without_bos()),
        ("mistral", "MistralForTokenClassification", byte_tokenizer(bos=True)),
    ],
)
def test_trl_models_are_recognized_and_score_as_trl_does(
    kind: str, class_name: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny(class_name, kind, num_labels=2)
    assert model.score.bias is not None
    assert model.score.bias.abs().min() > 0
    prm = assert_scores(saved(tmp_path, model, tokenizer), trl_script(model, tokenizer))
    assert prm.card is None
    assert prm.describe()["family"] == "trl"


def test_trl_puts_a_first_token_that_the_tokenizer_itself_does_not(tmp_path: Path) -> None:
    """As with SmolLM2 or GPT-2, which have a ``bos_token`` and do not open with it."""
    model, tokenizer = tiny("LlamaForTokenClassification", "llama", num_labels=2), byte_tokenizer(bos=False)
    assert tokenizer.bos_token_id is not None
    assert_scores(saved(tmp_path, model, tokenizer), trl_script(model, tokenizer))


def test_trl_has_a_dummy_space_before_every_piece(tmp_path: Path) -> None:
    """As with Llama 2 and Mistral: the separator is two tokens there, and a step begins with a space."""
    model, tokenizer = tiny("LlamaForTokenClassification", "llama", num_labels=2), metaspace_tokenizer()
    assert_scores(saved(tmp_path, model, tokenizer), trl_script(model, tokenizer))


def test_a_named_family_reads_one_label_as_a_logit(tmp_path: Path) -> None:
    model, tokenizer = tiny("Qwen2ForSequenceClassification", "qwen2", num_labels=1), without_bos()

    def score(question: str, steps: Sequence[str]) -> float:
        ids = tokenizer(question + "".join(step + "\n" for step in steps))["input_ids"]
        state = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return float(torch.sigmoid(model.score(state))[0])

    prm = assert_scores(saved(tmp_path, model, tokenizer), score, "trl")
    assert prm.describe()["family"] == "trl"


# --- Qwen2.5-Math-PRM -----------------------------------------------------------------------------------------------

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


def qwen_tokenizer() -> Any:
    tokenizer = without_bos()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<extra_0>"], special_tokens=True)
    tokenizer.chat_template = _CHATML
    assert len(tokenizer("<extra_0>")["input_ids"]) == 1
    return tokenizer


def qwen_checkpoint(folder: Path, *, shards: int = 1, layers: Sequence[tuple[int, int, int]] = ()) -> Any:
    """A checkpoint as the real ones are: a head with two layers, and code of its own that must not run.

    Args:
        layers: number, outputs, inputs of the linear layers of the head.

    Returns:
        The decoder and the weights of the head.
    """
    decoder = tiny("Qwen2Model", "qwen2")
    random = torch.Generator().manual_seed(1)
    head = {}
    for number, outputs, inputs in layers or [(0, 32, 32), (2, 2, 32)]:
        head[f"score.{number}.weight"] = torch.randn(outputs, inputs, generator=random) * 0.3
        head[f"score.{number}.bias"] = torch.randn(outputs, generator=random) * 0.3
    folder.mkdir(exist_ok=True)
    qwen_tokenizer().save_pretrained(folder)
    decoder.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig"}
    names["AutoModel"] = "modeling_qwen2_rm.Qwen2ForProcessRewardModel"
    config |= {"architectures": ["Qwen2ForProcessRewardModel"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("configuration_qwen2_rm.py", "modeling_qwen2_rm.py"):
        (folder / name).write_text("raise SystemExit('the code of a checkpoint was run')\n", encoding="utf-8")
    weights = {f"model.{name}": value.contiguous() for name, value in decoder.state_dict().items()} | head
    save_weights(folder, weights, shards)
    return decoder, head


def save_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def qwen_card(decoder: Any, head: dict[str, torch.Tensor]) -> Score:
    """``make_step_rewards`` of the model card: at every <extra_0> the probability of class 1."""
    tokenizer = qwen_tokenizer()
    separator = tokenizer.convert_tokens_to_ids("<extra_0>")
    functional = torch.nn.functional

    def score(question: str, steps: Sequence[str]) -> float:
        system = "Please reason step by step, and put your final answer within \\boxed{}."
        said = {"system": system, "user": question, "assistant": "<extra_0>".join(steps) + "<extra_0>"}
        messages = [{"role": role, "content": content} for role, content in said.items()]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids = torch.tensor([tokenizer.encode(text)])
        states = decoder(ids).last_hidden_state
        hidden = functional.linear(states, head["score.0.weight"], head["score.0.bias"]).relu()
        logits = functional.linear(hidden, head["score.2.weight"], head["score.2.bias"])
        marked = logits[ids == separator]
        assert len(marked) == len(steps)
        return softmax_of(marked[-1], 1)

    return score


@pytest.mark.parametrize("shards", [1, 3])
def test_qwen_models_are_recognized_and_score_as_their_card_does(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str) -> str:
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", ask)  # how Transformers asks whether to run a checkpoint's code
    decoder, head = qwen_checkpoint(tmp_path, shards=shards)
    prm = assert_scores(tmp_path, qwen_card(decoder, head))
    assert prm.describe()["family"] == "qwen2.5-math-prm"


# --- Math-Shepherd --------------------------------------------------------------------------------------------------


def sentencepiece(*pieces: str) -> Any:
    """A tokenizer with a dummy space, single letters, and these pieces of a space and some letters."""
    letters = ["▁", *(chr(code) for code in range(33, 127)), "\n", "к", "и"]
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {UNKNOWN: 120, BEGIN: 121, END: 122}
    merges = []
    for piece in pieces:
        for length in range(2, len(piece) + 1):
            pair = (piece[: length - 1], piece[length - 1])
            if pair not in merges:
                merges.append(pair)
                vocabulary["".join(pair)] = 130 + len(merges)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 121)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN
    )


def shepherd_card(model: Any, tokenizer: Any) -> Score:
    """The model card: the whole text at once; at every ки the probability of + against -."""
    candidates = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    assert len(candidates) == 2
    assert tokenizer.convert_ids_to_tokens([*candidates, tag]) == ["▁+", "▁-", "▁ки"]

    def score(question: str, steps: Sequence[str]) -> float:
        output = "\n".join(f"Step {number}: {step} ки" for number, step in enumerate(steps, start=1))
        ids = torch.tensor([tokenizer.encode(f"{question} {output}")])
        logits = model(ids).logits[:, :, candidates]
        marked = logits[ids == tag]
        assert len(marked) == len(steps)
        return softmax_of(marked[-1], 0)

    return score


@pytest.mark.parametrize(("kind", "class_name"), [("mistral", "MistralForCausalLM"), ("llama", "LlamaForCausalLM")])
def test_math_shepherd_scores_as_its_card_does(kind: str, class_name: str, tmp_path: Path) -> None:
    model, tokenizer = tiny(class_name, kind), sentencepiece("▁ки", "▁+", "▁-", "▁=")
    prm = assert_scores(saved(tmp_path, model, tokenizer), shepherd_card(model, tokenizer), "math-shepherd")
    assert prm.describe()["family"] == "math-shepherd"


def test_math_shepherd_where_a_space_and_a_word_are_one_token(tmp_path: Path) -> None:
    """As in the real tokenizer, which has ▁Step."""
    model, tokenizer = tiny("MistralForCausalLM", "mistral"), sentencepiece("▁ки", "▁+", "▁-", "▁Step")
    assert_scores(saved(tmp_path, model, tokenizer), shepherd_card(model, tokenizer), "math-shepherd")


def test_math_shepherd_numbers_no_step_twice(tmp_path: Path) -> None:
    """Its own data has the numbers in the steps."""
    model, tokenizer = tiny("LlamaForCausalLM", "llama"), sentencepiece("▁ки", "▁+", "▁-")
    prm = PRM.from_pretrained(str(saved(tmp_path, model, tokenizer)), family="math-shepherd", device="cpu")
    numbered = [
        Trajectory(each.question, tuple(f"Step {k}: {step}" for k, step in enumerate(each.steps, start=1)))
        for each in SOME
    ]
    assert scores_of(prm.rewards(numbered)) == scores_of(prm.rewards(SOME))


# --- RLHFlow --------------------------------------------------------------------------------------------------------

_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def llama3_tokenizer(*, template: str | None = _LLAMA3) -> Any:
    """One that opens every text with its first token, as the template does, too."""
    tokenizer: Any = byte_tokenizer(bos=True, merges=True)
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def rlhflow_script(model: Any, tokenizer: Any) -> Score:
    """The evaluation script: the whole conversation, one turn of + behind each step, read at [:, -3]."""
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]

    def score(question: str, steps: Sequence[str]) -> float:
        conversation = []
        for number, step in enumerate(steps):
            content = f"{question} {step}" if number == 0 else step
            conversation += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
        ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)["input_ids"]
        assert ids[0, -2] == candidates[0]
        return softmax_of(model(ids).logits[0, -3, candidates], 0)

    return score


def test_rlhflow_scores_as_its_script_does(tmp_path: Path) -> None:
    model, tokenizer = tiny("LlamaForCausalLM", "llama"), llama3_tokenizer()
    prm = assert_scores(saved(tmp_path, model, tokenizer), rlhflow_script(model, tokenizer), "rlhflow")
    assert prm.describe()["family"] == "rlhflow"


def test_rlhflow_with_tied_embeddings(tmp_path: Path) -> None:
    model, tokenizer = tiny("LlamaForCausalLM", "llama", tie_word_embeddings=True), llama3_tokenizer()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_scores(saved(tmp_path, model, tokenizer), rlhflow_script(model, tokenizer), "rlhflow")


# --- what cannot be scored ------------------------------------------------------------------------------------------

FAMILY_CASES = ["trl", "qwen2.5-math-prm", "math-shepherd", "rlhflow"]


def checkpoint(family: str, folder: Path) -> Path:
    if family == "trl":
        return saved(folder, tiny("Qwen2ForTokenClassification", "qwen2", num_labels=2), without_bos())
    if family == "qwen2.5-math-prm":
        qwen_checkpoint(folder)
        return folder
    tokenizer = sentencepiece("▁ки", "▁+", "▁-") if family == "math-shepherd" else llama3_tokenizer()
    return saved(folder, tiny("LlamaForCausalLM", "llama"), tokenizer)


def test_all_families_are_tested() -> None:
    assert set(FAMILY_CASES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_what_cannot_be_scored_says_so_and_leaves_the_others_alone(family: str, tmp_path: Path) -> None:
    prm = PRM.from_pretrained(str(checkpoint(family, tmp_path)), family=family, device="cpu")
    usual = prm.rewards(SOME)
    long = Trajectory("What is 2+2-1?", ("2 + 2 = 4.", "0123456789" * 110))
    assert len(prm.encode(long)) > ROOM
    records = prm.rewards([SOME[0], NO_STEPS, SOME[1], long, *SOME[2:]])
    assert [record.trajectory_id for record in records[:4]] == [SOME[0].id, NO_STEPS.id, SOME[1].id, long.id]
    assert records[1].error == "no steps"
    assert records[3].error == f"too long: {len(prm.encode(long))} tokens, the model's context holds {ROOM}"
    assert records[1].rewards == records[3].rewards == ()
    assert_same(scores_of([records[0], records[2], *records[4:]]), scores_of(usual))
    assert [record.error for record in prm.rewards([NO_STEPS, long])] == [records[1].error, records[3].error]
    assert prm.rewards([]) == []


def test_a_trajectory_that_just_fits(tmp_path: Path) -> None:
    prm = PRM.from_pretrained(str(checkpoint("trl", tmp_path)), device="cpu")
    fits, exceeds = (Trajectory("Why?", ("x" * (ROOM - len("Why?\n") + more),)) for more in (0, 1))
    (one, other) = prm.rewards([fits, exceeds])
    assert len(prm.encode(fits)) == ROOM
    assert one.error is None
    assert other.error == f"too long: {ROOM + 1} tokens, the model's context holds {ROOM}"


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "cpmi"]


def test_a_head_that_says_the_same_to_all_is_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("LlamaForTokenClassification", "llama", num_labels=2)
    torch.nn.init.zeros_(model.score.weight)
    torch.nn.init.zeros_(model.score.bias)
    prm = PRM.from_pretrained(str(saved(tmp_path, model, byte_tokenizer(bos=True))), device="cpu")
    assert scores_of(prm.rewards(SOME[1:2])) == [(0.5,)]
    assert not notes(caplog)  # one step alone proves nothing
    assert set(np.concatenate(scores_of(prm.rewards(SOME)))) == {0.5}
    assert notes(caplog) == [f"{tmp_path} gives the same score (0) to every step; is the checkpoint whole?"]
    prm.rewards(SOME)
    assert len(notes(caplog)) == 1


def test_a_sound_model_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PRM.from_pretrained(str(checkpoint("trl", tmp_path)), device="cpu").rewards(SOME)
    assert not notes(caplog)


def test_scores_that_are_no_numbers_are_errors(tmp_path: Path) -> None:
    model = tiny("LlamaForTokenClassification", "llama", num_labels=2)
    torch.nn.init.constant_(model.score.bias, float("nan"))
    prm = PRM.from_pretrained(str(saved(tmp_path, model, byte_tokenizer(bos=True))), device="cpu")
    records = prm.rewards(SOME)
    assert {record.error for record in records} == {"the model's scores are not finite"}
    assert {record.rewards for record in records} == {()}


# --- what cannot be opened ------------------------------------------------------------------------------------------


def refused(folder: Path, family: str | None = None) -> str:
    """The one line that says why."""
    with pytest.raises(InputError) as raised:
        PRM.from_pretrained(str(folder), family=family, device="cpu")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_language_model_must_name_its_family(tmp_path: Path) -> None:
    saved(tmp_path, tiny_model("llama"), byte_tokenizer())
    assert refused(tmp_path) == (
        f"model {tmp_path}: a LlamaForCausalLM without a head 'score' is no process reward model; if its head says "
        "+ and -, name its --family (math-shepherd or rlhflow)"
    )
    assert "without a head 'score'" in refused(tmp_path, "trl")


def test_a_head_that_does_not_say_how_steps_are_joined_must_name_its_family(tmp_path: Path) -> None:
    saved(tmp_path, tiny("LlamaForSequenceClassification", "llama", num_labels=1), byte_tokenizer())
    assert refused(tmp_path) == (
        f"model {tmp_path}: a LlamaForSequenceClassification that does not say how its steps are joined; "
        "name its --family"
    )


@pytest.mark.parametrize("class_name", ["LlamaForTokenClassification", "LlamaForSequenceClassification"])
def test_three_labels_are_refused(class_name: str, tmp_path: Path) -> None:
    saved(tmp_path, tiny(class_name, "llama", num_labels=3), byte_tokenizer())
    line = f"model {tmp_path}: its head gives 3 scores for a step; 1 or 2 (wrong, right) can be read"
    assert refused(tmp_path, "trl") == line


def test_a_misspelled_family_is_guessed(tmp_path: Path) -> None:
    line = refused(tmp_path, "math-sheperd")
    assert line.startswith("unknown family of reward models 'math-sheperd'; did you mean 'math-shepherd'? (known: trl,")


def test_a_tokenizer_of_another_family_is_refused(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", "llama")
    line = refused(saved(tmp_path / "bytes", model, byte_tokenizer()), "math-shepherd")
    assert line.endswith("its tokenizer has no single token for ' -'; is it of another family?")
    no_cyrillic = metaspace_tokenizer()
    no_cyrillic.add_tokens([" +", " -"])
    line = refused(saved(tmp_path / "latin", model, no_cyrillic), "math-shepherd")
    assert "reads the separator ' ки' as" in line


@pytest.mark.parametrize(
    ("kind", "field"),
    [("gemma2", "final_logit_softcapping"), ("granite", "logits_scaling"), ("cohere2", "logit_scale")],
)
def test_a_model_that_does_something_to_its_logits_is_refused(kind: str, field: str, tmp_path: Path) -> None:
    saved(tmp_path, tiny_model(kind), llama3_tokenizer())
    assert refused(tmp_path, "rlhflow") == (
        f"model {tmp_path}: reward models of an architecture with {field} cannot be read"
    )


@pytest.mark.parametrize("template", [None, "{{ messages[-1]['content'] }}"])
def test_a_chat_template_that_cannot_hold_steps_is_one_line(template: str | None, tmp_path: Path) -> None:
    saved(tmp_path, tiny("LlamaForCausalLM", "llama"), llama3_tokenizer(template=template))
    with pytest.raises(InputError, match="chat template") as raised:
        PRM.from_pretrained(str(tmp_path), family="rlhflow", device="cpu").rewards(SOME)
    assert "\n" not in str(raised.value)


def with_head(folder: Path, head: dict[str, torch.Tensor]) -> Path:
    """A TRL checkpoint with these weights in place of ``score.weight`` and ``score.bias``."""
    checkpoint("trl", folder)
    weights = load_file(folder / "model.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("score.")}
    assert len(weights) - len(body) == 2
    save_file(body | head, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("names", [("score.dense.weight", "score.out_proj.weight"), ("score.0.weight",)])
def test_a_head_of_unknown_shape_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with_head(tmp_path, {name: torch.ones(2, 32) for name in names})
    listed = ", ".join(name.removeprefix("score.") for name in names)
    assert refused(tmp_path) == f"model {tmp_path}: a head with the weights {listed} cannot be read"


@pytest.mark.parametrize(
    "shapes",
    [
        {"score.weight": (2, 32), "score.norm.weight": (32,)},
        {"score.0.weight": (32, 32), "score.2.weight": (2, 32), "score.4.weight": (2, 2)},
    ],
)
def test_a_head_with_more_than_it_should_have_is_refused(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    with_head(tmp_path, {name: torch.ones(shape) for name, shape in shapes.items()})
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("labels", [3, 32])
def test_a_head_of_two_layers_with_more_labels_is_refused(labels: int, tmp_path: Path) -> None:
    qwen_checkpoint(tmp_path, layers=[(0, 32, 32), (2, labels, 32)])
    assert f"its head gives {labels} scores for a step" in refused(tmp_path)


def test_a_checkpoint_without_its_head_is_no_reward_model(tmp_path: Path) -> None:
    with_head(tmp_path, {})
    assert "a Qwen2ForTokenClassification without a head 'score' is no process reward model" in refused(tmp_path)


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_an_interrupted_copy_is_one_line(family: str, tmp_path: Path) -> None:
    whole = checkpoint(family, tmp_path / "whole")
    weights = (whole / "model.safetensors").read_bytes()
    for name, content in {"half": weights[: len(weights) // 2], "empty": b"", "none": None}.items():
        folder = shutil.copytree(whole, tmp_path / name)
        (folder / "model.safetensors").unlink()
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
        assert refused(folder, family).startswith(f"model {folder} cannot be loaded: ")
    bare = shutil.copytree(whole, tmp_path / "bare")
    (bare / "config.json").unlink()
    assert "holds no config.json" in refused(bare, family)


def test_a_copy_without_one_of_its_shards_is_one_line(tmp_path: Path) -> None:
    qwen_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert refused(tmp_path).startswith(f"model {tmp_path} cannot be loaded: ")


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_a_checkpoint_that_lacks_a_layer_is_one_line(family: str, tmp_path: Path) -> None:
    """Transformers would fill it with random numbers."""
    checkpoint(family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] += 1
    if "layer_types" in config:
        config["layer_types"].append("full_attention")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    line = refused(tmp_path, family)
    assert "its files lack the weights" in line
    assert "layers.2." in line


def test_a_head_in_another_kind_of_file_is_one_line(tmp_path: Path) -> None:
    checkpoint("trl", tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert refused(tmp_path) == (
        f"model {tmp_path}: has no file model.safetensors; heads are read from safetensors alone"
    )


def test_no_such_folder_is_one_line(tmp_path: Path) -> None:
    for family in (None, *FAMILY_CASES):
        assert refused(tmp_path / "none", family).endswith(f"{tmp_path / 'none'}: no such folder")
