"""The managers and scores of ``cpmi.rl`` in verl itself: its configuration, loaders, ``DataProto``, reward loop on Ray.

Skipped where verl is not installed; docs/rl.md says how to install it beside cpmi. Nothing here needs a GPU.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

verl: Any = pytest.importorskip("verl", minversion="0.9.1", reason="verl is not installed; docs/rl.md says how")

pytestmark = pytest.mark.filterwarnings("ignore")  # verl's own, at import and in its dependencies

QUESTION = "What is 3 + 4?"
PROMPT = [{"role": "user", "content": QUESTION}]
# Steps end at characters 6 and 24. The end of the first is in the token of a full stop and a blank line.
RIGHT = "Add 4.\n\nThe answer is 7."
WRONG = "It is 8."
FIRST, SECOND, ONLY = 0.05, 0.1, 0.1  # half of the mean of 0.2 and 0.4, and of 0.2 alone

# What a user writes: verl imports it by its path, in this process and in its workers.
FILE = '''
from cpmi.records import StepRewards
from cpmi.rl import DenseRewardManager, Guards, RewardSettings, StepReward, VerlScore


class Rising:
    """0.2 for the first step, 0.4 for the second, and so on."""

    name = "rising"

    def describe(self):
        return {}

    def rewards(self, trajectories):
        return [
            StepRewards(each.id, tuple(0.2 * (i + 1) for i in range(len(each.steps))), self.name)
            for each in trajectories
        ]


def make():
    return StepReward(Rising(), RewardSettings(step_weight=0.5, split="blank-lines", guards=Guards.off()))


class StepManager(DenseRewardManager):
    def open_reward(self):
        return make()


class SumManager(StepManager):
    dense = False


compute_score = VerlScore(make())
'''


def quiet(name: str) -> Any:
    """A module of verl; what it warns of at import is not ours."""
    return pytest.importorskip(name, reason=f"{name} needs more than is installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "reward.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import byte_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(merges=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return quiet("verl.utils").hf_tokenizer(str(tokenizer_folder))


def configured(tokenizer_folder: Path, *overrides: str) -> Any:
    """verl's own configuration of PPO, with overrides as on its command line."""
    hydra = importlib.import_module("hydra")
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with hydra.initialize_config_dir(config_dir=str(folder), version_base=None):
        return hydra.compose("ppo_trainer", [f"actor_rollout_ref.model.path={tokenizer_folder}", *overrides])


def managed(file: Path, name: str) -> list[str]:
    """The overrides of docs/rl.md for a manager of one's own."""
    manager = "reward.reward_manager"
    return [f"{manager}.source=importlib", f"{manager}.module.path={file}", f"{manager}.name={name}"]


def scored(file: Path) -> list[str]:
    """The overrides of docs/rl.md for a score."""
    return [f"reward.custom_reward_function.path={file}", "reward.custom_reward_function.name=compute_score"]


def batch(tokenizer: Any, responses: Sequence[str], *, prompt: int = 5, **columns: Any) -> Any:
    """A ``DataProto``: prompts padded on the left, responses on the right, and the columns of verl's data."""
    import numpy as np
    import torch

    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in responses]
    width = max(map(len, ids)) + 3
    tensors = {
        "prompts": torch.zeros(len(ids), prompt, dtype=torch.int64),
        "responses": torch.tensor([[*row, *[0] * (width - len(row))] for row in ids]),
        "attention_mask": torch.tensor(
            [[0, 0, *[1] * (prompt - 2), *[1] * len(row), *[0] * (width - len(row))] for row in ids]
        ),
    }
    columns = columns or {
        "data_source": "x",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"question": QUESTION},
    }
    others = {name: np.array([value] * len(ids), dtype=object) for name, value in columns.items()}
    return verl.DataProto.from_dict(tensors=tensors, non_tensors=others)


def places(tensor: Any) -> dict[tuple[int, ...], float]:
    """What is not 0, and where."""
    return {tuple(place): round(tensor[tuple(place)].item(), 6) for place in tensor.nonzero().tolist()}


def step_ends(tokenizer: Any) -> tuple[int, int, int]:
    """The tokens of ``RIGHT`` at which its steps end, and its last, from the texts of the tokens."""
    tokens = tokenizer(RIGHT)["input_ids"]
    texts = [tokenizer.decode([each]) for each in tokens]
    assert texts[6 - 1] == ".\n\n"  # one token
    return 6 - 1, len(tokens) - 1, len(tokens)


# --- dense rewards --------------------------------------------------------------------------------------------------


def test_a_manager_that_verl_loads_puts_rewards_at_step_ends(
    file: Path, tokenizer: Any, tokenizer_folder: Path
) -> None:
    import torch

    reward = quiet("verl.trainer.ppo.reward")
    config = configured(tokenizer_folder, *managed(file, "StepManager"))
    manager = reward.load_reward_manager(config, tokenizer, reward_router_address=None, reward_model_tokenizer=None)
    data = batch(tokenizer, [RIGHT, WRONG, ""])
    tensor = manager(data)
    first, second, last = step_ends(tokenizer)
    assert places(tensor) == {
        (0, first): FIRST,
        (0, second): SECOND,
        (0, last): 1.0,
        (1, len(WRONG) - 1): ONLY,
    }
    assert (tensor.shape, tensor.dtype) == (data.batch["responses"].shape, torch.float32)
    given = manager(data, return_dict=True)
    assert torch.equal(given["reward_tensor"], tensor)
    assert given["reward_extra_info"]["acc"] == [1, 0, 0]

    async def run() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(data)))))

    rows = [result["reward_score"] for result in asyncio.run(run())]
    assert torch.equal(reward.resolve_reward_manager_cls(config).assemble_rm_scores(data, rows), tensor)


def test_a_manager_in_verls_registries(file: Path, tokenizer: Any) -> None:
    """Both generations: made as the managers of each are, and called as they are."""
    manager_class = quiet("verl.utils.import_utils").load_extern_object(str(file), "StepManager")
    old, new = quiet("verl.workers.reward_manager"), quiet("verl.experimental.reward_loop.reward_manager")
    for registry in (old, new):
        assert registry.register("cpmi_steps")(manager_class) is manager_class
        assert registry.get_reward_manager_cls("cpmi_steps") is manager_class
    manager = old.get_reward_manager_cls("cpmi_steps")(
        tokenizer=tokenizer, num_examine=0, compute_score=None, reward_fn_key="data_source"
    )
    assert manager(batch(tokenizer, [RIGHT])).sum().item() == pytest.approx(1 + FIRST + SECOND)


def test_what_verl_makes_of_dense_rewards(file: Path, tokenizer: Any) -> None:
    """Returns to go feel the places; GRPO only the sum."""
    import numpy as np
    import torch

    algorithms = quiet("verl.trainer.ppo.core_algos")
    manager = quiet("verl.utils.import_utils").load_extern_object(str(file), "StepManager")(tokenizer=tokenizer)
    data = batch(tokenizer, [RIGHT, WRONG])
    dense = manager(data)
    mask = data.batch["attention_mask"][:, 5:].float()
    at_end = torch.zeros_like(dense)
    at_end[torch.arange(2), mask.sum(dim=1).long() - 1] = dense.sum(dim=1)

    uid = np.array(["a", "a"], dtype=object)
    by_place, _ = algorithms.compute_grpo_outcome_advantage(dense, mask, uid)
    by_sum, _ = algorithms.compute_grpo_outcome_advantage(at_end, mask, uid)
    assert torch.allclose(by_place, by_sum)

    _, returns = algorithms.compute_gae_advantage_return(dense, torch.zeros_like(dense), mask, 1.0, 1.0)
    first, second, last = step_ends(tokenizer)
    whole = 1 + FIRST + SECOND
    seen = [returns[0, place].item() for place in (0, first, first + 1, second + 1, last)]
    assert seen == pytest.approx([whole, whole, whole - FIRST, 1, 1])


# --- one score ------------------------------------------------------------------------------------------------------


def test_a_score_that_verl_loads(file: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    """Through both of verl's naive managers, and its means of what was logged."""
    reward = quiet("verl.trainer.ppo.reward")
    config = configured(tokenizer_folder, *scored(file))
    data = batch(tokenizer, [RIGHT, WRONG])
    _, _, last = step_ends(tokenizer)
    total = round(1 + FIRST + SECOND, 6)

    whole_batch = quiet("verl.workers.reward_manager").NaiveRewardManager(
        tokenizer, num_examine=1, compute_score=reward.get_custom_reward_fn(config)
    )
    given = whole_batch(data, return_dict=True)
    assert places(given["reward_tensor"]) == {(0, last): total, (1, len(WRONG)): ONLY}
    assert given["reward_extra_info"]["acc"] == [1, 0]

    async def run() -> list[dict[str, Any]]:
        loop_manager = reward.load_reward_manager(config, tokenizer)
        assert type(loop_manager).__name__ == "NaiveRewardManager"
        return [await loop_manager.run_single(data[i : i + 1]) for i in range(len(data))]

    results = asyncio.run(run())
    assert [each["reward_score"] for each in results] == pytest.approx([total, ONLY])
    extra = results[0]["reward_extra_info"]
    assert json.loads(extra["step_shares"]) == [[6, FIRST], [24, SECOND]]
    logged = {name: [each["reward_extra_info"][name] for each in results] for name in extra}
    means = quiet("verl.trainer.ppo.metric_utils").process_validation_metrics(["x", "x"], ["a", "b"], logged)["x"]
    assert means["acc"]["mean@1"] == 0.5
    assert "step_shares" not in means  # a text


# --- the reward loop, on Ray ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray: Any = importlib.import_module("ray")
    # CPUs are a label: verl's workers ask for one each.
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()
        gc.collect()  # here its warnings of processes that take their time to end do not matter


@pytest.fixture(scope="module")
def dense_loop(cluster: Any, file: Path, tokenizer_folder: Path) -> Iterator[Any]:
    config = configured(tokenizer_folder, "reward.num_workers=2", *managed(file, "StepManager"))
    manager = quiet("verl.experimental.reward_loop").RewardLoopManager(config)
    yield manager
    for worker in manager.reward_loop_workers:
        cluster.kill(worker)


@pytest.mark.timeout(900)  # workers import verl, which takes minutes on a busy machine
def test_the_reward_loop(dense_loop: Any, tokenizer: Any) -> None:
    """Two workers of verl and three responses: padded, cut in chunks, and made one tensor by the manager."""
    given = dense_loop.compute_rm_score(batch(tokenizer, [RIGHT, WRONG, RIGHT]))
    first, second, last = step_ends(tokenizer)
    assert places(given.batch["rm_scores"]) == {
        (0, first): FIRST,
        (0, second): SECOND,
        (0, last): 1.0,
        (1, len(WRONG) - 1): ONLY,
        (2, first): FIRST,
        (2, second): SECOND,
        (2, last): 1.0,
    }
    tensor, extra = quiet("verl.trainer.ppo.reward").extract_reward(given)
    assert tensor is given.batch["rm_scores"]
    assert extra["acc"].tolist() == [1, 0, 1]
    # The trainer of 0.9.1 asks so, beside a reward model, with the chat alone: there is no right answer to judge by.
    given = dense_loop.compute_rm_score(batch(tokenizer, [RIGHT, WRONG], raw_prompt=PROMPT))
    assert places(given.batch["rm_scores"]) == {}
    assert given.non_tensor_batch["judged"].tolist() == [0, 0]


async def in_agent_loop(handle: Any, tokenizer: Any) -> Any:
    """The rewards that verl's agent loop makes of a response, once a worker of the reward loop has scored it."""
    agent_loop = quiet("verl.experimental.agent_loop.agent_loop")
    worker = object.__new__(agent_loop.AgentLoopWorker)  # without its model
    worker.processor, worker.mm_processor_kwargs = None, {}
    worker.reward_loop_worker_handles = [handle]
    ids = [*tokenizer(RIGHT)["input_ids"], tokenizer.eos_token_id]
    output = agent_loop.AgentLoopOutput(
        prompt_ids=[1, 2, 3], response_ids=ids, response_mask=[1] * len(ids), num_turns=2, metrics={}
    )
    row = {
        "raw_prompt": PROMPT,
        "data_source": "x",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"question": QUESTION},
    }
    await worker._compute_score([output], kwargs=row)
    assert output.extra_fields["reward_extra_info"]["acc"] == 1
    return output.as_dict()["rm_scores"]


@pytest.mark.parametrize("how", ["manager", "score"])
def test_the_agent_loop_takes_a_sum(file: Path, tokenizer: Any, tokenizer_folder: Path, how: str) -> None:
    """The default of verl 0.9.1: one number, which it puts at the last token. verl's worker, in this process."""
    config = configured(tokenizer_folder, *(managed(file, "SumManager") if how == "manager" else scored(file)))

    async def run() -> Any:
        worker = quiet("verl.experimental.reward_loop").RewardLoopWorker(config)
        handle = SimpleNamespace(compute_score=SimpleNamespace(remote=worker.compute_score))
        return await in_agent_loop(handle, tokenizer)

    _, _, last = step_ends(tokenizer)
    assert places(asyncio.run(run())) == {(last,): round(1 + FIRST + SECOND, 6)}


def test_the_agent_loop_takes_no_dense_rewards(dense_loop: Any, tokenizer: Any) -> None:
    with pytest.raises(TypeError, match="can't assign a list"):
        asyncio.run(in_agent_loop(dense_loop.reward_loop_worker_handles[0], tokenizer))
