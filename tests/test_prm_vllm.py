"""The checkpoint in real vLLM, as a user would serve it: its per-token scores are ours (make test-vllm)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpmi.models import ModelSettings
from cpmi.models.vllm_loading import _prepare_cpu, close_engine
from cpmi.prm.data import TargetRow
from cpmi.prm.model import PRM
from cpmi.prm.settings import TrainSettings
from cpmi.prm.train import train
from test_vllm import FOLDER, MODEL

# Deprecated calls of vLLM's own are none of ours.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

SOLUTIONS = [
    (
        "A box holds 7 apples. How many are in 6 boxes?",
        ("There are 7 apples in a box.", "6 * 7 = 42.", "The answer is 42."),
    ),
    ("What is 15 % of 80?", ("15 % is 0.15.", "0.15 * 80 = 13.", "The answer is 13.")),
    ("Ann has 3 pens and buys 4. How many has she?", ("3 + 4 = 7, so she has 7 pens.",)),
]
QWEN = FOLDER / "qwen-0.5b"


@pytest.fixture(scope="module", params=[MODEL, QWEN], ids=lambda folder: folder.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained head on a real decoder, Llama's and Qwen2's; the targets are made up."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here; run: make test-vllm")
    base: Path = request.param
    if not (base / "config.json").is_file():
        pytest.skip(f"no model {base.name} in {FOLDER}; name its folder in CPMI_TEST_MODELS")
    folder = tmp_path_factory.mktemp("prm") / base.name
    settings = TrainSettings(ModelSettings(str(base), device="cpu"), epochs=3, held_out=0.0, head_rate=0.01)
    train(_rows(), settings, folder)
    return folder


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_vllm_gives_every_step_the_score_that_we_do(checkpoint: Path, dtype: str, tolerance: float) -> None:
    """In float32 to the last digits; in bfloat16, which has 8 bits, to its rounding."""
    _prepare_cpu()
    import vllm
    from vllm.config import PoolerConfig

    ours = PRM.from_pretrained(str(checkpoint), device="cpu", dtype=dtype)
    trajectories = [row.trajectory for row in _rows()]
    encoded = [ours.encode(trajectory) for trajectory in trajectories]
    options: dict[str, Any] = {
        "runner": "pooling",
        "pooler_config": PoolerConfig(task="token_classify", use_activation=False),
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 2**28,
    }
    llm = vllm.LLM(str(checkpoint), **options)
    try:
        prompts = [{"prompt_token_ids": list(each.ids)} for each in encoded]
        outputs = llm.encode(prompts, pooling_task="token_classify")
    finally:
        close_engine(llm)
    for each, output, record in zip(encoded, outputs, ours.rewards(trajectories), strict=True):
        scores = output.outputs.data[:, 0].float().numpy()
        assert len(scores) == len(each.ids)
        found = scores[list(each.ends)]
        size = max(1.0, float(np.abs(found).max()))
        assert np.abs(found - record.terms["score"]).max() < tolerance * size
        assert np.ptp(scores) > 0.1  # another position would have another score


def _rows() -> list[TargetRow]:
    return [
        TargetRow(str(i), question, steps, tuple(float(j % 2) for j in range(len(steps))), (0.0,) * len(steps), "test")
        for i, (question, steps) in enumerate(SOLUTIONS)
    ]
