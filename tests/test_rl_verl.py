"""verl's calls, on tensors of the shapes that verl 0.9.1 hands over; ``test_rl_verl_real.py`` asks verl itself."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cpmi.errors import InputError
from cpmi.labelers.outcome import Outcome
from cpmi.rl import DenseRewardManager, Guards, RewardSettings, StepReward, VerlScore

QUESTION = "What is 3 + 4?"
SETTINGS = RewardSettings(step_weight=0.5, split="blank-lines", guards=Guards.off())


def make() -> StepReward:
    """1 for a right answer, and half a point for the steps of a right solution, shared among them."""
    return StepReward(Outcome(), SETTINGS)


class Bytes:
    """A tokenizer whose tokens are bytes; 0 and 1 are special."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return bytes(i for i in ids if i > 1).decode(errors="replace")


class Data:
    """What ``verl.DataProto`` is to a manager: ``batch``, ``non_tensor_batch``, a length and items."""

    def __init__(self, responses: list[str], width: int = 40, prompt: int = 5) -> None:
        ids = torch.zeros(len(responses), width, dtype=torch.int64)
        mask = torch.zeros(len(responses), prompt + width, dtype=torch.int64)
        mask[:, 2:prompt] = 1  # prompts are padded on the left
        for i, response in enumerate(responses):
            tokens = [*response.encode(), 1]  # the end of the text is a token too
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, prompt : prompt + len(tokens)] = 1
        self.batch = {"prompts": torch.zeros(len(responses), prompt), "responses": ids, "attention_mask": mask}
        self.other: list[dict[str, Any]] = [
            {"data_source": "x", "reward_model": {"ground_truth": "7"}, "extra_info": {"question": QUESTION}}
        ] * len(responses)

    def __len__(self) -> int:
        return len(self.other)

    def __getitem__(self, i: int) -> SimpleNamespace:
        return SimpleNamespace(
            batch={name: values[i] for name, values in self.batch.items()}, non_tensor_batch=self.other[i]
        )


class Manager(DenseRewardManager):
    def open_reward(self) -> StepReward:
        return make()


RIGHT = "Add 4.\n\nThe answer is 7."  # steps end at characters 6 and 24, so at bytes 5 and 23; the text's end is 24


def test_one_score_for_a_response() -> None:
    score = VerlScore(make())
    right = score(data_source="x", solution_str=RIGHT, ground_truth="7", extra_info={"question": QUESTION})
    assert right["score"] == 1.5
    assert right["acc"] == 1
    assert json.loads(str(right["step_shares"])) == [[6, 0.25], [24, 0.25]]
    unknown = score(solution_str=RIGHT, ground_truth=None, extra_info={"question": QUESTION})
    assert (unknown["score"], unknown["judged"]) == (0, 0)
    assert list(unknown) == list(right)  # verl takes the entries of the first response for all
    with pytest.raises(InputError, match="no 'question'"):
        score(solution_str=RIGHT, ground_truth="7", extra_info={})


def test_a_reward_at_each_steps_last_token() -> None:
    data = Data([RIGHT, "It is 8.", ""])
    manager = Manager(tokenizer=Bytes(), num_examine=0, compute_score=None, reward_fn_key="data_source")
    given = manager(data, return_dict=True)
    tensor = given["reward_tensor"]
    assert tensor.shape == (3, 40)
    assert tensor.dtype == torch.float32
    places = {tuple(place): tensor[tuple(place)].item() for place in tensor.nonzero().tolist()}
    assert places == {(0, 5): 0.25, (0, 23): 0.25, (0, 24): 1.0}
    assert given["reward_extra_info"]["acc"] == [1, 0, 0]
    assert torch.equal(manager(data), tensor)


def test_a_potential_gives_back_what_it_gave() -> None:
    class Potential(Manager):
        potential = True

    tensor = Potential(tokenizer=Bytes())(Data([RIGHT]))
    assert tensor[0, 5].item() == 0.25
    assert tensor[0, 23].item() == -0.25
    assert tensor.sum().item() == 1.0  # the outcome


def test_the_reward_loop() -> None:
    """As ``RewardLoopManager.compute_rm_score``: single rows first, then a tensor of them."""
    data = Data([RIGHT, "It is 8."])
    manager = Manager(
        config=object(), tokenizer=Bytes(), compute_score=None, reward_router_address=None, reward_model_tokenizer=None
    )

    async def run() -> list[dict[str, Any]]:
        ones = [Data([text]) for text in (RIGHT, "It is 8.")]
        return list(await asyncio.gather(*(manager.run_single(one) for one in ones)))

    results = asyncio.run(run())
    tensor = Manager.assemble_rm_scores(data, [result["reward_score"] for result in results])
    assert torch.equal(tensor, manager(data))
    assert results[0]["reward_extra_info"]["score"] == 1.5

    class Scalar(Manager):
        dense = False

    (one,) = asyncio.run(asyncio.wait_for(gathered(Scalar(tokenizer=Bytes()), Data([RIGHT])), 60))
    assert one["reward_score"] == pytest.approx(1.5)


async def gathered(manager: DenseRewardManager, data: Data) -> list[dict[str, Any]]:
    return [await manager.run_single(data)]


def test_the_question_may_stand_in_the_chat() -> None:
    data = Data([RIGHT])
    data.other = [{"reward_model": {"ground_truth": "7"}, "raw_prompt": [{"role": "user", "content": QUESTION}]}]
    assert Manager(tokenizer=Bytes())(data).sum().item() == 1.5
    with pytest.raises(NotImplementedError, match="open_reward"):
        DenseRewardManager()
