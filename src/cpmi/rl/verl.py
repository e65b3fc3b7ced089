"""Step rewards for verl: one score for each response, or dense ones at the tokens that end steps.

Written against verl 0.9.1, without importing it (``tests/test_rl_verl_real.py`` does):

* ``verl/experimental/reward_loop/reward_manager/naive.py``: ``compute_score(data_source=, solution_str=,
  ground_truth=, extra_info=)`` gives a float, or a dict with ``score`` whose other entries are logged. All responses
  must have the same entries; numbers are averaged, texts are not (``verl/trainer/ppo/metric_utils.py``).
* ``.../reward_manager/base.py``: a manager is made with ``config``, ``tokenizer``, ``compute_score``; ``run_single``
  gives ``{"reward_score", "reward_extra_info"}``, and ``assemble_rm_scores`` makes (responses, tokens) of the scores.
  ``reward_loop.py`` calls both in ``compute_rm_score``; the trainers reach that only beside a reward model on the same
  GPUs, and the default one (``trainer/ppo/v1``) then hands over the chat alone, without a right answer.
* ``verl/workers/reward_manager/naive.py`` (the form of older versions): called with the whole batch, gives
  ``reward_tensor`` and ``reward_extra_info``.

The agent loop of 0.9.1 (``experimental/agent_loop/agent_loop.py``, ``as_dict`` and ``_postprocess``) puts one number at
the last token itself and never asks ``assemble_rm_scores``: there ``dense`` must be False, or a ``TypeError`` ends the
run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cpmi.errors import InputError
from cpmi.rl.completions import Attempt, gold_answer, question_text, token_ends
from cpmi.rl.reward import Judged, StepReward, as_json


class VerlScore:
    """A reward as verl's ``compute_score``; name an instance of it in ``reward.custom_reward_function.name``."""

    def __init__(self, reward: StepReward) -> None:
        self._reward = reward

    def __call__(
        self,
        data_source: str = "",
        solution_str: str = "",
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> dict[str, float | str]:
        """The score of one response and what it is made of; see ``entries``.

        Args:
            extra_info: holds the ``question``, as verl's own data preparation writes it.

        Raises:
            InputError: there is no question.
        """
        del data_source, others
        return entries(self._reward.judge([_attempt(self._reward, solution_str, ground_truth, extra_info, None)])[0])


def entries(judged: Judged) -> dict[str, float | str]:
    """A score as verl logs it: always the same entries. A response that cannot be judged has score 0 and ``judged`` 0,
    since verl knows no missing reward."""
    return {
        "score": judged.reward or 0.0,
        "acc": judged.outcome or 0.0,
        "step_reward": judged.step_reward or 0.0,
        "steps": float(len(judged.ends)),
        "withheld": float(sum(reason is not None for reason in judged.withheld)),
        "judged": float(judged.error is None),
        "step_shares": as_json(judged),
    }


def _attempt(
    reward: StepReward, text: str, gold: Any, extra_info: Mapping[str, Any] | None, raw_prompt: Any
) -> Attempt:
    question = (extra_info or {}).get(reward.settings.question_column)
    if question is None and raw_prompt is not None:
        question = question_text(list(raw_prompt))
    if question is None:
        name = reward.settings.question_column
        raise InputError(f"verl's extra_info has no {name!r}; write the question there when you prepare the data")
    return reward.attempt(str(question), text, gold_answer(gold))


class DenseRewardManager:
    """A reward manager for verl that puts each step's share at the token that ends the step.

    Subclass it in a file of your own, say how the reward is opened, and name file and class in verl's configuration
    (``reward.reward_manager.source=importlib``, ``.module.path``, ``.name``).

    Attributes:
        dense: whether ``run_single`` gives a number for each token, for ``assemble_rm_scores``; False: their sum.
        potential: whether the last step pays back what all steps gave, so that they add up to zero: shaping by a
            potential that ends at 0 (docs/rl.md). The outcome stays.
    """

    dense = True
    potential = False

    def __init__(
        self,
        tokenizer: Any = None,
        num_examine: int = 0,
        compute_score: Any = None,
        reward_fn_key: str = "data_source",
        config: Any = None,
        **others: Any,
    ) -> None:
        """As verl's managers of both generations are made; what concerns other managers is not used."""
        del num_examine, compute_score, reward_fn_key, others
        self.config = config
        self.tokenizer = tokenizer
        self._reward = self.open_reward()

    def open_reward(self) -> StepReward:
        """The reward; called once in each process."""
        raise NotImplementedError("say how the reward is opened: def open_reward(self): return CPMIReward(...)")

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """The (responses, tokens) tensor of rewards of a batch (``DataProto``), alone or with the entries logged."""
        rows, extra = self._rows([data[i] for i in range(len(data))])
        tensor = self.assemble_rm_scores(data, rows)
        return {"reward_tensor": tensor, "reward_extra_info": extra} if return_dict else tensor

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The score of one response; of several sequences the last, as verl's own managers do it."""
        item = data[len(data) - 1]
        rows, extra = await asyncio.to_thread(self._rows, [item])
        score = rows[0] if self.dense else sum(rows[0])
        return {"reward_score": score, "reward_extra_info": {name: values[0] for name, values in extra.items()}}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[Sequence[float]]) -> Any:
        """(responses, tokens) float32 of the rows that ``run_single`` gave; shorter rows are filled with 0."""
        responses = data.batch["responses"]
        tensor = responses.new_zeros(tuple(responses.shape)).float()
        for i, row in enumerate(scores):
            tensor[i, : len(row)] = tensor.new_tensor(list(row))
        return tensor

    def _rows(self, items: Sequence[Any]) -> tuple[list[list[float]], dict[str, list[float | str]]]:
        """For each response a reward for each of its tokens (without padding), and the entries to log."""
        ids = [_response_ids(item) for item in items]
        attempts = [
            _attempt(
                self._reward,
                self._text(tokens),
                (item.non_tensor_batch.get("reward_model") or {}).get("ground_truth"),
                item.non_tensor_batch.get("extra_info"),
                item.non_tensor_batch.get("raw_prompt"),
            )
            for item, tokens in zip(items, ids, strict=True)
        ]
        judged = self._reward.judge(attempts)
        rows = [self._row(tokens, each) for tokens, each in zip(ids, judged, strict=True)]
        logged = [entries(each) for each in judged]
        return rows, {name: [each[name] for each in logged] for name in logged[0]} if logged else {}

    def _row(self, ids: Sequence[int], judged: Judged) -> list[float]:
        row = [0.0] * len(ids)
        if not ids or judged.reward is None:
            return row
        shares = list(judged.shares)
        if self.potential and shares:
            shares[-1] -= sum(shares)
        places = token_ends(ids, judged.ends, self._text) if judged.ends else []
        for place, share in zip(places, shares, strict=True):
            row[place] += share
        row[-1] += judged.rest
        return row

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _response_ids(item: Any) -> list[int]:
    """The tokens of a response without padding, which stands on the right."""
    responses = item.batch["responses"]
    valid = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
    ids: list[int] = responses[:valid].tolist()
    return ids
