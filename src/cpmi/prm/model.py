"""A process reward model as a ``StepRewarder``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cpmi.models import ModelSettings
from cpmi.prm.checkpoint import Card, Opened, open_checkpoint
from cpmi.prm.encode import Encoded
from cpmi.prm.features import FeatureCache
from cpmi.prm.states import StateReader, StepStates
from cpmi.protocols import FloatArray
from cpmi.records import JSON, StepRewards, Trajectory

logger = logging.getLogger("cpmi")

_ENOUGH, _SAME = 4, 1e-6  # steps whose scores ought to differ, and by how much at least


class PRM:
    """A trained reward model: one pass over a trajectory gives a reward for each of its steps."""

    def __init__(self, opened: Opened, settings: ModelSettings, *, cache: FeatureCache | None = None) -> None:
        """Take over an opened checkpoint; see ``from_pretrained``.

        Args:
            cache: states of the decoder that were computed before are taken from there, and new ones put there; only
                for a model whose decoder is its base's own.

        Raises:
            InputError: the cache is another decoder's.
        """
        self._opened = opened
        self._name = settings.name
        self._device = next(opened.network.parameters()).device
        self._reader = StateReader(opened.network, self._device, batch_tokens=settings.batch_tokens)
        self._cache = cache
        self._is_constant = False
        self._dtype = str(next(iter(_decoder(opened).parameters())).dtype).removeprefix("torch.")
        if cache is not None:
            cache.require(decoder_revision(opened), self._dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        family: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_tokens: int = 0,
    ) -> PRM:
        """Load a reward model from a folder or a hub id.

        Args:
            family: how a model that was trained elsewhere is read, one of ``cpmi.prm.families.FAMILIES``; None: what
                its configuration says.
            dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
            device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``...
            batch_tokens: the most tokens of one pass; 0: what suits the device.

        Raises:
            InputError: nothing there, or no reward model.
        """
        settings = ModelSettings(source, dtype, device, batch_tokens)
        return cls(open_checkpoint(settings, family), settings)

    @property
    def name(self) -> str:
        return "prm"

    @property
    def card(self) -> Card | None:
        """What the checkpoint says of itself, if ``cpmi train`` made it."""
        return self._opened.card

    def encode(self, trajectory: Trajectory) -> Encoded:
        """The tokens and positions that the model reads, for engines of your own."""
        return self._opened.encoder.encode(trajectory)

    def rewards(self, trajectories: Sequence[Trajectory]) -> list[StepRewards]:
        """See ``StepRewarder.rewards``: the probability that a step is right, or the score itself where the model was
        trained on numbers that are no probabilities (``Card.reading``)."""
        encoded = [self.encode(trajectory) for trajectory in trajectories]
        errors = [self._why_not(trajectory, each) for trajectory, each in zip(trajectories, encoded, strict=True)]
        able = [index for index, error in enumerate(errors) if error is None]
        found = dict(zip(able, self._states([encoded[index] for index in able]), strict=True))
        records = [
            self._record(trajectory, found.get(index, StepStates(None, error=errors[index])))
            for index, trajectory in enumerate(trajectories)
        ]
        self._look_for_a_constant(records)
        return records

    def _look_for_a_constant(self, records: Sequence[StepRewards]) -> None:
        """What a broken checkpoint gives: Qwen2.5-Math-PRM with its own code under Transformers 5 says 0.50003."""
        scores = [score for record in records for score in record.terms.get("score", ())]
        if len(scores) >= _ENOUGH and max(scores) - min(scores) < _SAME and not self._is_constant:
            self._is_constant = True
            logger.warning(
                "%s gives the same score (%.5g) to every step; is the checkpoint whole?", self._name, scores[0]
            )

    def _why_not(self, trajectory: Trajectory, encoded: Encoded) -> str | None:
        if not trajectory.steps:
            return "no steps"
        room = self._opened.context_length
        if room and len(encoded) > room:
            return f"too long: {len(encoded)} tokens, the model's context holds {room}"
        return None

    def _states(self, encoded: Sequence[Encoded]) -> list[StepStates]:
        if self._cache is None:
            return self._reader.read(encoded)
        return self._cache.states(encoded, self._reader)

    def _record(self, trajectory: Trajectory, found: StepStates) -> StepRewards:
        if found.states is None:
            return StepRewards(trajectory.id, (), self.name, cost=found.cost, error=found.error)
        scores = self._scores(found.states)
        if not np.isfinite(scores).all():
            return StepRewards(trajectory.id, (), self.name, cost=found.cost, error="the model's scores are not finite")
        rewards = 0.5 * (1 + np.tanh(scores / 2)) if self._opened.reading == "sigmoid" else scores
        terms = {"score": tuple(scores.tolist())}
        return StepRewards(trajectory.id, tuple(rewards.tolist()), self.name, terms=terms, cost=found.cost)

    @torch.inference_mode()
    def _scores(self, states: torch.Tensor) -> FloatArray:
        scores: FloatArray = self._opened.network(states.to(self._device)[None])[0].cpu().numpy().astype(np.float64)
        return scores

    def describe(self) -> dict[str, JSON]:
        """See ``StepRewarder.describe``."""
        engine: dict[str, JSON] = {"model": self._name, "revision": self._opened.revision, "dtype": self._dtype}
        return {"engine": engine, "family": self._opened.family}

    def close(self) -> None:
        """Give back memory; the model cannot be used afterwards."""
        del self._opened, self._reader


def _decoder(opened: Opened) -> Any:
    return opened.network.backbone


def decoder_revision(opened: Opened) -> str | None:
    """Whose states its decoder computes: the base's, where training left it alone."""
    card = opened.card
    return card.base_revision if card is not None and card.frozen else opened.revision
