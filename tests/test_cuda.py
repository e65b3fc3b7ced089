"""On a GPU: the same numbers as on the CPU, by every path that is another one there.

Skipped, with a reason, where there is none. With a model: CPMI_CUDA_MODEL=PATH (else tiny random ones).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpmi import read_rewards
from cpmi.models import ModelSettings
from cpmi.models.hf import HFModel
from cpmi.prm.settings import TrainSettings, Tune
from cpmi.prm.train import train
from cpmi.protocols import Prompt, SamplingParams, TokenTree
from test_prm_train import rows, weights
from tiny_models import byte_tokenizer, random_tree, tiny_model

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
    # What torch.compile and a GPU's libraries say of themselves is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

RunCpmi = Callable[..., tuple[int, str, str]]
KINDS = ["llama", "qwen2", "qwen2-mixed", "qwen3-mixed", "gemma3", "gpt2", "granite"]
WIDE = ["llama", "qwen3-mixed", "gemma3"]
"""FlexAttention's kernels take heads of at least 16 numbers; those of the tiny models have fewer."""


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products in float32 as they are: with TF32 the third digit is noise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def trees(count: int, size: int) -> list[TokenTree]:
    rng = np.random.default_rng(0)
    return [random_tree(rng, int(rng.integers(size // 2, size)), branching=0.1) for _ in range(count)]


def scores(model: HFModel, wanted: list[TokenTree]) -> np.ndarray[Any, Any]:
    found = []
    for tree, scored in zip(wanted, model.logprobs(wanted), strict=True):
        assert scored.logprobs is not None, scored.error
        found.append(scored.logprobs[tree.scored])
    return np.concatenate(found)


@pytest.mark.parametrize(("kind", "size"), [*((kind, None) for kind in KINDS), *((kind, 32) for kind in WIDE)])
def test_scores_are_those_of_the_cpu(kind: str, size: int | None) -> None:
    more = {} if size is None else {"head_dim": size}
    wanted = trees(8, 120)
    here = scores(HFModel(tiny_model(kind, **more), byte_tokenizer(), name=kind), wanted)
    there = scores(HFModel(tiny_model(kind, **more).cuda(), byte_tokenizer(), name=kind), wanted)
    assert np.abs(here - there).max() < 2e-3
    assert np.ptp(here) > 0.1


def test_flex_attention_is_used_and_says_what_dense_masks_do() -> None:
    model = HFModel(
        tiny_model("llama", head_dim=64, num_attention_heads=4, num_key_value_heads=2).cuda(),
        byte_tokenizer(),
        name="llama",
    )
    attention = model._forward.attention
    assert attention.flex, "FlexAttention was left: see the warnings"
    wanted = trees(40, 200)
    by_flex = scores(model, wanted)
    attention.flex = False
    by_blocks = scores(model, wanted)
    attention.by_blocks = False
    dense = scores(model, wanted)
    assert np.abs(by_flex - dense).max() < 1e-3
    assert np.abs(by_blocks - dense).max() < 1e-3


def test_out_of_memory_on_the_gpu_is_work_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_model("llama").cuda(), byte_tokenizer(), name="llama")
    wanted = trees(20, 120)
    expected = scores(model, wanted)
    row = model._forward.row
    hogs: list[int] = []

    def greedy(*arguments: Any) -> Any:
        if not hogs:
            hogs.append(1)
            torch.empty(1 << 50, device="cuda")  # a real error of the allocator
        return row(*arguments)

    monkeypatch.setattr(model._forward, "row", greedy)
    assert np.abs(scores(model, wanted) - expected).max() < 1e-3
    assert hogs


def test_a_prompt_has_the_same_completions_alone_and_among_others() -> None:
    model = HFModel(tiny_model("llama").cuda(), byte_tokenizer(), name="llama")
    prompts = [Prompt(f"Add {i} and {i + 3}.\nFirst", seed=i) for i in range(12)]
    params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=24)
    together = model.sample(prompts, 4, params)
    alone = [model.sample([prompt], 4, params)[0] for prompt in prompts]
    assert [each.completions for each in together] == [each.completions for each in alone]
    assert len({each.text for sampled in together for each in sampled.completions}) > 12


@pytest.mark.parametrize("tune", ["features", "head", "lora", "full"])
def test_training_learns_on_the_gpu(tune: Tune, tiny_base: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        ModelSettings(str(tiny_base), device="cuda"),
        tune,
        epochs=8,
        batch_size=8,
        held_out=0.2,
        rate=3e-3,
        head_rate=1e-2,
    )
    report = train(rows(80), settings, tmp_path / tune)
    assert report.best_loss is not None
    assert report.constant_loss is not None
    assert math.isfinite(report.best_loss)
    assert report.best_loss < report.constant_loss
    assert weights(tmp_path / tune)


def test_a_head_on_features_is_nearly_that_of_the_cpu(tiny_base: Path, tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        settings = TrainSettings(
            ModelSettings(str(tiny_base), device=device),
            "features",
            epochs=5,
            batch_size=8,
            held_out=0.2,
            head_rate=1e-2,
        )
        losses[device] = train(rows(80), settings, tmp_path / device).best_loss
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.02)


def test_labels_and_scores_of_the_command_line_are_those_of_the_cpu(
    tiny_base: Path, tmp_path: Path, run_cpmi: RunCpmi, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = os.environ.get("CPMI_CUDA_MODEL", str(tiny_base))
    lines = [
        {
            "id": f"t{i}",
            "question": f"What is {i} + {i + 1} times two?",
            "steps": [f"First {i} + {i + 1} = {2 * i + 1}.", f"Then {2 * i + 1} * 2 = {4 * i + 2}."],
            "gold_answer": str(4 * i + 2),
            "final_answer": str(4 * i + 2 + i % 2),
        }
        for i in range(10)
    ]
    source = tmp_path / "trajectories.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for method in ("cpmi", "posterior"):
        rewards = {}
        for device in ("cpu", "cuda"):
            output = tmp_path / f"{method}-{device}"
            told = ("--method", method, "--model", f"hf:{base}", "--dtype", "float32", "--device", device)
            status, _, error = run_cpmi("label", str(source), *told, "--output", str(output))
            assert status == 0, error
            rewards[device] = {each.trajectory_id: each.rewards for each in read_rewards(output)}
        assert rewards["cpu"].keys() == rewards["cuda"].keys() == {f"t{i}" for i in range(10)}
        for name, values in rewards["cpu"].items():
            assert values == pytest.approx(rewards["cuda"][name], abs=2e-3)
