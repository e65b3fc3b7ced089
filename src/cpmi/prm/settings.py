"""How to train, and what came of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cpmi.errors import InputError
from cpmi.models import ModelSettings
from cpmi.prm.data import WeightSettings
from cpmi.prm.encode import StepFormat
from cpmi.prm.objectives import ObjectiveSettings
from cpmi.records import Cost

Tune = Literal["features", "head", "lora", "full"]
Head = Literal["linear", "mlp"]
TooLong = Literal["refuse", "truncate", "drop"]
LogTo = Literal["none", "tensorboard", "wandb"]


_BATCH = 32
_STEPS = 1200
_EPOCHS = (6, 30)  # of a head on features, at least and at most


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Of the low-rank adapters (PEFT).

    Attributes:
        targets: names of the layers that get one, or ``all-linear``.
        merge: add them to the decoder's weights in the end, so that the checkpoint is a plain one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    merge: bool = True


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. None stands for what suits ``tune`` (see ``resolved``).

    Attributes:
        base: the model to begin with.
        tune: ``features``: a head on the states of the frozen decoder, computed once; ``head``: the same, computed in
            every epoch; ``lora``: low-rank adapters and the head; ``full``: every weight.
        head: ``linear``: one layer, which everything can load; ``mlp``: two, which this package can load.
        form: how steps are written.
        epochs: passes over the data.
        batch_size: trajectories of one optimizer step, over all processes.
        forward_size: of these, how many at a time in each process.
        rate, head_rate, embedding_rate: learning rates of decoder, head and embeddings.
        warmup: share of the optimizer steps in which the rates rise.
        held_out: share of the questions to watch the loss on; 0: none.
        patience: epochs without a better held-out loss after which training stops; the best weights are kept.
        max_tokens: of a trajectory; None: what the decoder's context holds.
        too_long: what becomes of trajectories with more: ``refuse`` to train; ``truncate`` the steps that do not fit;
            ``drop`` the trajectory.
        bf16: compute in bfloat16 where it is safe (autocast); None: on a GPU that can, for ``lora`` and ``full``.
    """

    base: ModelSettings
    tune: Tune = "features"
    head: Head = "linear"
    form: StepFormat = StepFormat()
    objective: ObjectiveSettings = ObjectiveSettings()
    weights: WeightSettings = WeightSettings()
    lora: LoraSettings = LoraSettings()
    epochs: float | None = None
    batch_size: int | None = None
    forward_size: int | None = None
    rate: float | None = None
    head_rate: float | None = None
    embedding_rate: float = 2e-6
    weight_decay: float = 0.01
    warmup: float = 0.05
    schedule: str = "cosine"
    held_out: float = 0.1
    patience: int = 5
    max_tokens: int | None = None
    too_long: TooLong = "refuse"
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    seed: int = 0
    log_to: LogTo = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"the share of questions held out must be at least 0 and below 1, not {self.held_out}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"the share of steps to warm up in must be at least 0 and below 1, not {self.warmup}")
        for name in ("epochs", "batch_size", "forward_size", "rate", "head_rate", "max_tokens", "patience"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name.replace('_', ' ')} must be above 0, not {value}")
        if self.tune == "lora" and self.head == "mlp" and not self.lora.merge:
            raise InputError("adapters that are kept apart go with a linear head; merge them, or take --head linear")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"the seed must be at least 0 and below 2**32, not {self.seed}")
        if self.objective.kind.ranks and self.weights.by != "none":
            raise InputError(f"{self.objective.name} compares steps, and cannot count them by their confidence")
        if self.objective.kind.ranks and self.weights.positive != 1.0:
            raise InputError(f"{self.objective.name} compares steps, and has no weight of right ones")

    def resolved(self, trajectories: int) -> TrainSettings:
        """With numbers in place of None; those of ``full`` are the official CPMI code's.

        Args:
            trajectories: to learn from. A head on features takes about ``_STEPS`` optimizer steps, whose rate falls to
                0: with 30 epochs over thousands of trajectories the best weights come early, at a rate still so high
                that they are a matter of luck (docs/results.md).
        """
        features = self.tune in ("features", "head")
        batch_size = self.batch_size or _BATCH
        few = min(max(math.ceil(_STEPS * batch_size / max(trajectories, 1)), _EPOCHS[0]), _EPOCHS[1])
        suits: dict[str, Any] = {
            "epochs": float(few) if self.tune == "features" else 2.0,
            "batch_size": _BATCH,
            "rate": {"lora": 2e-4}.get(self.tune, 2e-5),
            "head_rate": 1e-3 if features else 3e-4,
        }
        chosen = {name: value for name, value in suits.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **chosen)


@dataclass(slots=True)
class TrainReport:
    """What was done.

    Attributes:
        trained, held_out: trajectories on either side.
        steps: annotated steps that were learned from.
        steps_cut, dropped: steps and whole trajectories that were too long.
        unused: trajectories without a step to learn from.
        stray_marks: trajectories that hold the separator's token elsewhere, too.
        best_loss: of the held-out trajectories; None where there are none.
        constant_loss: theirs for the best constant score: whoever has no less has learned nothing.
        epochs: that were done.
        seconds: of wall time for the decoder's states and for training.
        cost: of the decoder's states.
        history: what the trainer logged.
    """

    output: Path
    trained: int = 0
    held_out: int = 0
    steps: int = 0
    steps_cut: int = 0
    dropped: int = 0
    stray_marks: int = 0
    unused: int = 0
    best_loss: float | None = None
    constant_loss: float | None = None
    epochs: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    cost: Cost = Cost()
    history: list[dict[str, float]] = field(default_factory=list)
