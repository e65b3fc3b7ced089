"""Training: what is learned does not depend on how the work is cut, and nothing paid for is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from cpmi.errors import CpmiError, InputError
from cpmi.models import ModelSettings
from cpmi.prm.data import TargetRow, WeightSettings, split_by_question
from cpmi.prm.encode import StepFormat
from cpmi.prm.model import PRM
from cpmi.prm.network import Scaled, StepScorer
from cpmi.prm.objectives import OBJECTIVES, ObjectiveSettings, loss_sum
from cpmi.prm.settings import LoraSettings, TrainSettings, Tune
from cpmi.prm.train import train
from cpmi.prm.trainer import last_checkpoint
from cpmi.records import JSON, write_rows
from tiny_models import byte_tokenizer, tiny_model

WORDS = ("add", "take", "double", "halve", "count", "so")


def rows(count: int = 24, seed: int = 0, wrong: str = "!") -> list[TargetRow]:
    """Steps that hold a ``!`` are wrong; what can be learned at all is learned from that."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        targets = [float(rng.random() < 0.7) for _ in range(rng.integers(1, 5))]
        steps = tuple(f"{rng.choice(WORDS)} {rng.integers(10)}{'' if target else wrong * 3}" for target in targets)
        known: list[float | None] = [None if rng.random() < 0.1 else target for target in targets]
        made.append(TargetRow(f"t{number}", f"question {number // 2}?", steps, tuple(known), tuple(known), "test"))
    return made


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base


def settings(base: Path, tune: Tune = "features", **changes: Any) -> TrainSettings:
    known: dict[str, Any] = {"epochs": 2, "batch_size": 8, "held_out": 0.0, "rate": 1e-3, "head_rate": 1e-2}
    return TrainSettings(ModelSettings(str(base), device="cpu"), tune, **known | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path, tolerance: float = 1e-5) -> bool:
    here, there = weights(one), weights(other)
    assert here.keys() == there.keys()
    return all(torch.allclose(here[name], there[name], atol=tolerance, rtol=1e-4) for name in here)


# --- how the work is cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_big_batch_learns_what_many_small_ones_do(objective: str, base: Path, tmp_path: Path) -> None:
    """Steps are uneven, some are not annotated, and the last optimizer step of an epoch is smaller than the others."""
    for size in (8, 2, 1):
        chosen = settings(base, "full", forward_size=size, objective=ObjectiveSettings(objective))
        train(rows(20), chosen, tmp_path / str(size))
    assert same(tmp_path / "8", tmp_path / "2")
    assert same(tmp_path / "8", tmp_path / "1")
    untrained = tiny_model("llama").model.state_dict()
    moved = weights(tmp_path / "8")
    assert any(not torch.allclose(moved[f"model.{name}"], value, atol=1e-4) for name, value in untrained.items())


@pytest.mark.parametrize("tune", ["features", "full"])
def test_two_processes_learn_what_one_does(tune: Tune, base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "targets.jsonl", [_as_json(row) for row in rows(24)], {})
    options = ["targets.jsonl", "--base-model", str(base), "--tune", tune, "--epochs", "2", "--batch-size", "8"]
    options += ["--head-learning-rate", "0.01", "--device", "cpu", "--held-out", "0.2"]
    options += ["--learning-rate", "1e-3"] if tune == "full" else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outputs = []
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        launch = launch if count > 1 else []
        size = str(8 // count)
        command = [sys.executable, *launch, "-m", "cpmi", "train", *options, "--forward-size", size]
        done = subprocess.run(
            [*command, "--output", str(count)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        assert "held out" in done.stdout
        assert len(done.stdout.strip().splitlines()) == 4  # once, not once for each process
        record = json.loads((tmp_path / str(count) / "training.json").read_text())
        assert record["processes"] == count
    if tune == "features":  # the order of the other one depends on the number of processes: batches are alike in length
        # Each process computes states in batches of its own, so they differ in the last digit; and the first weights
        # solve nearly singular equations in them.
        assert same(tmp_path / "1", tmp_path / "2", 1e-3)
        assert _best(outputs[0]) == _best(outputs[1])


def _best(printed: str) -> str:
    return next(line for line in printed.splitlines() if "best held-out loss" in line)


def _as_json(row: TargetRow) -> dict[str, Any]:
    return {
        "id": row.id, "question": row.question, "steps": list(row.steps), "targets": list(row.targets),
        "rewards": list(row.rewards), "source": row.source,
    }  # fmt: skip


# --- stopping and going on ------------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def stop_at(step: int) -> Callable[[str, int, int, Mapping[str, float]], None]:
    def on_progress(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        del total, figures
        if phase == "training" and done == step:
            raise _Killed

    return on_progress


@pytest.mark.parametrize("tune", ["features", "lora", "full"])
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_been(tune: Tune, base: Path, tmp_path: Path) -> None:
    chosen = settings(base, tune, epochs=4, forward_size=4)
    train(rows(), chosen, tmp_path / "whole")
    with pytest.raises(_Killed):
        train(rows(), chosen, tmp_path / "killed", on_progress=stop_at(8))  # of 12, 3 in an epoch
    assert not (tmp_path / "killed").exists()
    steps: list[int] = []
    train(rows(), chosen, tmp_path / "killed", on_progress=lambda phase, done, *_: steps.append(done))
    assert min(step for step in steps if step) > 6 or tune == "features"
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert not (tmp_path / "killed.training").exists()


def test_half_a_checkpoint_is_thrown_away(base: Path, tmp_path: Path) -> None:
    chosen = settings(base, "full", epochs=4)
    train(rows(), chosen, tmp_path / "whole")
    with pytest.raises(_Killed):
        train(rows(), chosen, tmp_path / "prm", on_progress=stop_at(8))
    checkpoints = tmp_path / "prm.training" / "checkpoints"
    torn = checkpoints / "checkpoint-999"
    torn.mkdir()
    (torn / "trained.safetensors").write_bytes(b"half")
    (torn / "trainer_state.json").write_text('{"global_step": 9')
    newest = last_checkpoint(checkpoints)
    assert newest is not None
    assert Path(newest).name == "checkpoint-6"
    assert not torn.exists()
    train(rows(), chosen, tmp_path / "prm")
    assert same(tmp_path / "whole", tmp_path / "prm")


def test_an_interrupted_save_leaves_nothing_that_looks_whole(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Any, folder: Path, **_: Any) -> None:
        (Path(folder) / "config.json").write_text("{")
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(transformers.LlamaForSequenceClassification, "save_pretrained", dies)
        with pytest.raises(_Killed):
            train(rows(), settings(base), tmp_path / "prm")
    assert not (tmp_path / "prm").exists()
    train(rows(), settings(base), tmp_path / "prm")
    assert PRM.from_pretrained(str(tmp_path / "prm")).rewards([rows()[0].trajectory])[0].error is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prm"]


def test_a_full_disk_is_one_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, folder: Path, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForSequenceClassification, "save_pretrained", full)
    with pytest.raises(CpmiError, match=r"prm: cannot be written \(No space left on device\)"):
        train(rows(), settings(base), tmp_path / "prm")


def test_another_training_is_not_gone_on_with(base: Path, tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        train(rows(), settings(base, "full"), tmp_path / "prm", on_progress=stop_at(4))
    with pytest.raises(InputError, match=r"unfinished training with other settings \(head_rate, seed\)"):
        train(rows(), settings(base, "full", seed=1, head_rate=0.5), tmp_path / "prm")
    with pytest.raises(InputError, match=r"with other settings \(targets\)"):
        train(rows(10), settings(base, "full"), tmp_path / "prm")
    flipped = [replace(row, targets=tuple(None if t is None else 1 - t for t in row.targets)) for row in rows()]
    with pytest.raises(InputError, match=r"with other settings \(targets\)"):
        train(flipped, settings(base, "full"), tmp_path / "prm")
    # What changes nothing that is learned may change.
    train(rows(), settings(base, "full", forward_size=2, gradient_checkpointing=True), tmp_path / "prm")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        train(rows(), settings(base), tmp_path / "there")


# --- what is learned ------------------------------------------------------------------------------------------------


def rewards(folder: Path, some: list[TargetRow]) -> list[float]:
    records = PRM.from_pretrained(str(folder), device="cpu").rewards([row.trajectory for row in some])
    return [reward for record in records for reward in record.rewards]


@pytest.mark.parametrize("tune", ["features", "head", "lora", "full"])
def test_it_learns_and_tells_new_steps_apart(tune: Tune, base: Path, tmp_path: Path) -> None:
    report = train(rows(80), settings(base, tune, epochs=20, held_out=0.1, head_rate=0.03), tmp_path / "prm")
    assert report.best_loss is not None
    assert report.constant_loss is not None
    assert report.best_loss < 0.8 * report.constant_loss
    fresh = rows(30, seed=5)
    given = [float("!" not in step) for row in fresh for step in row.steps]
    got = rewards(tmp_path / "prm", fresh)
    right = [reward for reward, target in zip(got, given, strict=True) if target]
    wrong = [reward for reward, target in zip(got, given, strict=True) if not target]
    assert np.mean([r > w for r in right for w in wrong]) > (0.9 if tune == "full" else 0.7)
    assert all(0 <= reward <= 1 for reward in got)


def test_the_same_seed_is_the_same_model(base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(rows(), settings(base, "full", seed=seed), tmp_path / name)
    assert same(tmp_path / "a", tmp_path / "b", 0.0)
    assert not same(tmp_path / "a", tmp_path / "c")


def test_the_best_epoch_is_kept_and_training_stops(base: Path, tmp_path: Path) -> None:
    report = train(rows(40), settings(base, epochs=60, held_out=0.3, patience=2, head_rate=0.5), tmp_path / "prm")
    losses = [row["eval_loss"] for row in report.history if "eval_loss" in row]
    assert report.epochs < 60
    assert report.best_loss == min(losses)
    assert losses.index(min(losses)) == len(losses) - 3
    assert report.trained + report.held_out == 40
    # What is saved is what had the best loss: the held-out loss of the saved model says so.
    _, held = split_by_question(rows(40), 0.3, 0)
    logits = [np.log(r / (1 - r)) for r in rewards(tmp_path / "prm", held)]
    targets = [target for row in held for target in row.targets]
    known = [(z, t) for z, t in zip(logits, targets, strict=True) if t is not None]
    loss = np.mean([np.log1p(np.exp(-z)) if t else np.log1p(np.exp(z)) for z, t in known])
    assert loss == pytest.approx(report.best_loss, abs=1e-4)


def test_the_loss_of_a_constant_is_that_of_the_mean(base: Path, tmp_path: Path) -> None:
    report = train(rows(40), settings(base, held_out=0.3), tmp_path / "prm")
    kept, held = split_by_question(rows(40), 0.3, 0)
    mean = np.mean([t for row in kept for t in row.targets if t is not None])
    known = [t for row in held for t in row.targets if t is not None]
    expected = -np.mean([t * np.log(mean) + (1 - t) * np.log(1 - mean) for t in known])
    assert report.constant_loss == pytest.approx(expected, abs=1e-4)


def test_a_head_begins_at_the_best_constant_and_is_folded_into_one_layer() -> None:
    """Some dimensions hardly vary, as in real decoders; there is no bias, and none is needed."""
    rng = np.random.default_rng(0)
    sizes = np.array([30.0, 1.0, 0.1, 5.0, 0.02, 1.0])
    states = [
        torch.tensor(rng.normal(size=(n, 6)) * sizes + 20 * (sizes == 5.0), dtype=torch.float32) for n in (3, 40, 7)
    ]
    network = Scaled.over(torch.nn.Linear(6, 1, bias=False), states, 1.5)
    scores = torch.cat([network(each) for each in states])
    assert scores.mean().item() == pytest.approx(1.5, abs=0.15)
    assert scores.std().item() < 0.6
    plain = network.head
    network.fold()
    assert torch.allclose(torch.cat([plain(each) for each in states]), scores, atol=1e-5)
    assert torch.allclose(torch.cat([network(each) for each in states]), scores, atol=1e-5)


# --- the checkpoint -------------------------------------------------------------------------------------------------


def test_transformers_alone_loads_it(base: Path, tmp_path: Path) -> None:
    """Its own class reads the score at the last token, which is that of the last step; others by ``hidden @ score``."""
    train(rows(), settings(base, "full"), tmp_path / "prm")
    prm = PRM.from_pretrained(str(tmp_path / "prm"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "prm").eval()
    bare = transformers.AutoModel.from_pretrained(tmp_path / "prm").eval()
    some = [row.trajectory for row in rows()[:6]]
    with torch.no_grad():
        for trajectory, record in zip(some, prm.rewards(some), strict=True):
            encoded = prm.encode(trajectory)
            ids = torch.tensor([encoded.ids])
            assert model(ids).logits.item() == pytest.approx(record.terms["score"][-1], abs=1e-5)
            states = bare(ids).last_hidden_state[0, list(encoded.ends)]
            assert (states @ model.score.weight[0]).tolist() == pytest.approx(list(record.terms["score"]), abs=1e-5)
    # Several texts at once need a padding token, which the base has none of.
    assert model.config.pad_token_id == 257


def test_what_it_needs_to_be_read_is_in_its_configuration(base: Path, tmp_path: Path) -> None:
    maps: list[Mapping[str, JSON]] = [{"normalizer": "rank", "source": "test", "n": 3}]
    form = StepFormat(after_question=" ", separator=" #")
    train(rows(), settings(base, form=form, objective=ObjectiveSettings("focal")), tmp_path / "prm", maps=maps)
    config = json.loads((tmp_path / "prm" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["cpmi"]["form"] | {"after_question": " ", "separator": " #"} == config["cpmi"]["form"]
    assert config["cpmi"]["separator_ids"] == byte_tokenizer()(" #")["input_ids"]
    assert config["cpmi"]["reading"] == "sigmoid"
    assert config["cpmi"]["objective"] == "focal"
    assert config["cpmi"]["maps"] == maps
    card = PRM.from_pretrained(str(tmp_path / "prm")).card
    assert card is not None
    assert card.form == form
    record = json.loads((tmp_path / "prm" / "training.json").read_text())
    assert record["settings"]["tune"] == "features"
    assert record["report"]["steps"] == sum(t is not None for row in rows() for t in row.targets)


def test_numbers_without_bounds_are_learned_as_they_are(base: Path, tmp_path: Path) -> None:
    scaled = [replace(row, targets=tuple(None if t is None else 10 * t - 5 for t in row.targets)) for row in rows(80)]
    chosen = settings(base, "full", epochs=15, objective=ObjectiveSettings("mse-logit"), head_rate=0.03)
    train(scaled, chosen, tmp_path / "prm")
    got = rewards(tmp_path / "prm", rows(30, seed=5))
    assert min(got) < -1
    assert max(got) > 3


def test_adapters_are_merged_or_kept(base: Path, tmp_path: Path) -> None:
    for name, merge in (("merged", True), ("kept", False)):
        train(rows(), settings(base, "lora", lora=LoraSettings(rank=4, merge=merge, dropout=0.0)), tmp_path / name)
    assert (tmp_path / "kept" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert rewards(tmp_path / "merged", rows()) == pytest.approx(rewards(tmp_path / "kept", rows()), abs=1e-5)
    untrained = tiny_model("llama").model.state_dict()
    moved = weights(tmp_path / "merged")
    changed = {name for name, value in untrained.items() if not torch.allclose(moved[f"model.{name}"], value)}
    assert changed == {
        name for name in untrained if any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
    }


def test_only_the_head_is_trained_on_a_frozen_decoder(base: Path, tmp_path: Path) -> None:
    for tune in ("features", "head"):
        train(rows(), settings(base, tune), tmp_path / tune)
        moved = weights(tmp_path / tune)
        for name, value in tiny_model("llama").model.state_dict().items():
            assert torch.equal(moved[f"model.{name}"], value)


@pytest.mark.parametrize("tune", ["features", "full"])
def test_a_head_of_two_layers_is_saved_and_read(tune: Tune, base: Path, tmp_path: Path) -> None:
    train(rows(), settings(base, tune, head="mlp"), tmp_path / "prm")
    assert {name for name in weights(tmp_path / "prm") if name.startswith("score")} == {
        "score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias",
    }  # fmt: skip
    prm = PRM.from_pretrained(str(tmp_path / "prm"))
    bare = transformers.AutoModel.from_pretrained(tmp_path / "prm").eval()
    head = weights(tmp_path / "prm")
    trajectory = rows()[0].trajectory
    encoded = prm.encode(trajectory)
    with torch.no_grad():
        states = bare(torch.tensor([encoded.ids])).last_hidden_state[0, list(encoded.ends)]
        hidden = torch.relu(states @ head["score.0.weight"].T + head["score.0.bias"])
        scores = (hidden @ head["score.2.weight"].T + head["score.2.bias"])[:, 0]
    (record,) = prm.rewards([trajectory])
    assert list(record.terms["score"]) == pytest.approx(scores.tolist(), abs=1e-5)


def test_features_serve_several_trainings_and_scorings(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "features"
    train(rows(), settings(base), tmp_path / "a", features=shared)
    plain = rewards(tmp_path / "a", rows())

    def not_again(*_: Any) -> Any:
        raise AssertionError("states are computed a second time")

    monkeypatch.setattr("cpmi.prm.states.StateReader._pass", not_again)
    monkeypatch.setattr("cpmi.prm.states.StateReader._probe", lambda self: None)
    monkeypatch.setattr("cpmi.prm.states.StateReader._row", not_again)
    report = train(rows(), settings(base, objective=ObjectiveSettings("pqm")), tmp_path / "b", features=shared)
    assert report.cost.tokens_scored == 0
    from cpmi.prm.checkpoint import open_checkpoint
    from cpmi.prm.features import FeatureCache

    where = ModelSettings(str(tmp_path / "a"), device="cpu")
    prm = PRM(open_checkpoint(where), where, cache=FeatureCache(shared))
    records = prm.rewards([row.trajectory for row in rows()])
    assert [reward for record in records for reward in record.rewards] == pytest.approx(plain, abs=1e-6)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_nothing_can_be_learned_from_is_refused(base: Path, tmp_path: Path) -> None:
    def refused(some: list[TargetRow], **changes: Any) -> str:
        with pytest.raises(InputError) as caught:
            train(some, settings(base, **changes), tmp_path / "prm")
        assert not (tmp_path / "prm").exists()
        return str(caught.value)

    odd = replace(rows()[0], targets=(1.5,) * len(rows()[0].steps))
    assert "targets must lie in [0, 1]: 4 do not (first: 1.5 of 't0')" in refused([odd, *rows()[1:]])
    alike = [replace(row, targets=(1.0,) * len(row.steps)) for row in rows()]
    assert refused(alike) == "all targets are 1, so that there is nothing to learn"
    assert "none is left to hold out" in refused(rows(2), held_out=0.01)
    assert "no step is left" in refused(rows(), weights=WeightSettings(ambiguous=(-0.5, 1.5)))


def test_trajectories_that_are_too_long(base: Path, tmp_path: Path) -> None:
    long = TargetRow("long", "q?", ("a" * 40, "b" * 40, "c" * 300), (1.0, 0.0, 1.0), (1.0, 0.0, 1.0), "test")
    hopeless = replace(long, id="hopeless", question="q" * 300)
    some = [*rows(), long, hopeless]
    with pytest.raises(InputError, match=r"2 of 26 trajectories have more than 256 tokens \(up to 68\d\)"):
        train(some, settings(base), tmp_path / "prm")
    report = train(some, settings(base, too_long="truncate"), tmp_path / "cut")
    assert (report.steps_cut, report.dropped, report.trained) == (4, 1, 25)
    report = train(some, settings(base, too_long="drop"), tmp_path / "drop")
    assert (report.steps_cut, report.dropped, report.trained) == (6, 2, 24)
    report = train(some, settings(base, too_long="drop", max_tokens=30), tmp_path / "few")
    assert report.dropped > 2


def test_a_loss_that_is_no_number_stops_with_the_names_of_its_batch(base: Path, tmp_path: Path) -> None:
    some = [replace(row, targets=(1e30, *row.targets[1:])) if row.id == "t3" else row for row in rows()]
    chosen = settings(base, objective=ObjectiveSettings("mse-logit"), batch_size=24)
    with pytest.raises(CpmiError, match=r"the loss of optimizer step 1 is not finite; its trajectories are .*t\d+, "):
        train(some, chosen, tmp_path / "prm")
    assert not (tmp_path / "prm").exists()


def test_a_gradient_that_is_no_number_stops_before_it_spoils_the_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(scores: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        return loss_sum(scores, *rest, **options) + (scores.sum() * 0).sqrt()  # 0, with a slope of 0 times infinity

    monkeypatch.setattr("cpmi.prm.trainer.loss_sum", steep)
    with pytest.raises(
        CpmiError, match=r"the gradient of optimizer step 1 is not finite; its trajectories are t\d+, t"
    ):
        train(rows(), settings(base), tmp_path / "prm")


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="no head 'score'"):
        train(rows(), settings(tmp_path / "bert"), tmp_path / "prm")


def test_the_separator_of_a_tokenizer_that_merges_it(tmp_path: Path) -> None:
    """Pieces are joined by their ids, so that nothing merges; whoever reads the text is told."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    byte_tokenizer(merges=True).save_pretrained(tmp_path / "base")
    some = [replace(row, steps=tuple(f"{step}." for step in row.steps)) for row in rows()]
    train(some, settings(tmp_path / "base"), tmp_path / "prm")
    prm = PRM.from_pretrained(str(tmp_path / "prm"))
    encoded = prm.encode(some[0].trajectory)
    assert {encoded.ids[end] for end in encoded.ends} == {258}
    assert json.loads((tmp_path / "prm" / "training.json").read_text())["separator_merges_in_text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 1.0}, "held out"),
        ({"warmup": -0.1}, "warm up"),
        ({"seed": 2**32}, "the seed must be at least 0 and below"),
        ({"tune": "lora", "head": "mlp", "lora": LoraSettings(merge=False)}, "go with a linear head"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 0}, "batch size must be above 0"),
        ({"objective": ObjectiveSettings("pqm"), "weights": WeightSettings(by="reward")}, "pqm compares steps"),
        ({"objective": ObjectiveSettings("pairwise"), "weights": WeightSettings(positive=2.0)}, "pairwise compares"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainSettings(ModelSettings("x"), **changes)


def test_batches_that_cannot_be_cut(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the batch of 8 trajectories cannot be cut into 1 processes with 3 at a time"):
        train(rows(), settings(base, forward_size=3), tmp_path / "prm")


def test_a_batch_that_is_not_named_is_cut_as_it_can_be(base: Path, tmp_path: Path) -> None:
    train(rows(), settings(base, "lora", batch_size=9), tmp_path / "prm")
    train(rows(), settings(base, batch_size=67), tmp_path / "features")


def test_out_of_memory_is_a_line_and_what_was_done_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def runs_out(scores: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(scores, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr("cpmi.prm.trainer.loss_sum", runs_out)
        patched.setattr("cpmi.prm.trainer.best_constant", lambda *_: 0.0)
        patched.setattr("cpmi.prm.train.best_constant", lambda *_: 0.0)
        with pytest.raises(CpmiError, match="out of memory with 8 trajectories at a time; run the same with a smaller"):
            train(rows(), settings(base, "full"), tmp_path / "prm")
    train(rows(), settings(base, "full"), tmp_path / "whole")
    train(rows(), settings(base, "full", forward_size=4), tmp_path / "prm")
    assert same(tmp_path / "prm", tmp_path / "whole")


def test_patience_is_not_forgotten_when_a_training_goes_on(base: Path, tmp_path: Path) -> None:
    chosen = settings(base, epochs=60, held_out=0.3, patience=2, head_rate=0.5)
    whole = train(rows(40), chosen, tmp_path / "whole")
    with pytest.raises(_Killed):
        train(rows(40), chosen, tmp_path / "prm", on_progress=stop_at(round(whole.epochs) * 4 - 1))
    assert train(rows(40), chosen, tmp_path / "prm").epochs == whole.epochs


def test_features_do_not_lie_where_the_model_goes(base: Path, tmp_path: Path) -> None:
    for place in ("prm", "prm/features", "prm.training/features"):
        with pytest.raises(InputError, match="lies in the folder of the reward model"):
            train(rows(), settings(base), tmp_path / "prm", features=tmp_path / place)
    with pytest.raises(InputError, match="names no folder of its own"):
        train(rows(), settings(base), Path())


def test_nothing_to_rank_or_to_divide(base: Path, tmp_path: Path) -> None:
    alike = [replace(row, targets=(row.targets[0] or 0.0,) * len(row.steps)) for row in rows()]
    with pytest.raises(InputError, match="no trajectory to train on has two steps with different targets"):
        train(alike, settings(base, objective=ObjectiveSettings("pairwise")), tmp_path / "prm")
    with pytest.raises(InputError, match="all targets are on one side of 2; choose another --hard-at"):
        train(rows(), settings(base, objective=ObjectiveSettings("bce-hard", hard_at=2.0)), tmp_path / "prm")


def test_an_adapter_is_told_from_its_base(base: Path, tmp_path: Path) -> None:
    """Its states are others, and its base must be the one it was trained on."""
    from cpmi.prm.checkpoint import open_checkpoint
    from cpmi.prm.features import FeatureCache

    own = tmp_path / "base"
    shutil.copytree(base, own)
    shared = tmp_path / "features"
    train(rows(), settings(own), tmp_path / "plain", features=shared)
    train(rows(), settings(own, "lora", lora=LoraSettings(merge=False)), tmp_path / "kept")
    where = ModelSettings(str(tmp_path / "kept"), device="cpu")
    with pytest.raises(InputError, match="holds features of another decoder"):
        PRM(open_checkpoint(where), where, cache=FeatureCache(shared))
    with pytest.raises(InputError, match="says in its configuration how it is read; leave --family out"):
        open_checkpoint(where, "trl")
    tiny_model("llama", seed=1).save_pretrained(own)
    with pytest.raises(InputError, match="is an adapter for another revision of"):
        open_checkpoint(where)
    shutil.rmtree(own)
    with pytest.raises(InputError, match=r"kept is an adapter, and its base does not load: .*no such folder"):
        open_checkpoint(where)


def test_a_frozen_decoder_has_no_dropout(base: Path) -> None:
    model = tiny_model("llama")
    network = StepScorer(model.model, torch.nn.Linear(32, 1)).train()
    assert network.backbone is not None
    assert network.backbone.training
    network.backbone.requires_grad_(False)
    assert not network.train().backbone.training  # type: ignore[union-attr]
    assert network.score.training


def test_layers_that_get_no_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapters cannot be added: .*; name layers with --lora-targets"):
        train(rows(), settings(base, "lora", lora=LoraSettings(targets=("nothing",))), tmp_path / "prm")


def test_figures_go_to_tensorboard(base: Path, tmp_path: Path) -> None:
    chosen = settings(base, log_to="tensorboard")
    files: list[Path] = []

    def look(*_: Any) -> None:
        files.extend((tmp_path / "prm.training").rglob("events.out.tfevents*"))

    train(rows(), chosen, tmp_path / "prm", on_progress=look)
    assert files
    assert list((tmp_path / "prm" / "runs").rglob("events.out.tfevents*"))


def test_gradient_checkpointing_changes_nothing(base: Path, tmp_path: Path) -> None:
    for name, checkpointing in (("with", True), ("without", False)):
        train(rows(), settings(base, "full", gradient_checkpointing=checkpointing), tmp_path / name)
    assert same(tmp_path / "with", tmp_path / "without")


def test_bfloat16_is_near(base: Path, tmp_path: Path) -> None:
    for name, bf16 in (("with", True), ("without", False)):
        train(rows(), settings(base, "full", bf16=bf16, epochs=1), tmp_path / name)
    assert same(tmp_path / "with", tmp_path / "without", 2e-2)
    assert not same(tmp_path / "with", tmp_path / "without", 1e-6)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "with").values())
