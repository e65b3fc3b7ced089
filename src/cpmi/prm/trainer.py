"""Transformers' Trainer, taught what a step is: batches of trajectories, losses over their annotated steps."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cpmi.errors import CpmiError
from cpmi.prm.encode import Encoded
from cpmi.prm.network import StepScorer, pad
from cpmi.prm.objectives import ObjectiveSettings, loss_sum, units
from cpmi.protocols import FloatArray

_WEIGHTS = "trained.safetensors"
_AT_A_TIME = 1024  # examples


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A trajectory to learn from.

    Attributes:
        name: its id, for whoever must look at it.
        encoded: what the decoder reads, or
        states: (steps, H) what it said.
        targets: (steps,) NaN where a step is not annotated.
        weights: (steps,) what each step counts.
    """

    name: str
    encoded: Encoded
    targets: FloatArray
    weights: FloatArray
    states: Tensor | None = None


class Examples(Dataset[dict[str, Any]]):
    """Examples as Transformers' samplers want them: they look at the length of ``input_ids``."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {"input_ids": example.encoded.ids, "example": example}


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: ``names``, ``targets`` and ``weights`` (B, S), and what ``StepScorer.forward`` takes."""
    examples: list[Example] = [row["example"] for row in rows]
    steps = max(len(each.targets) for each in examples)
    targets = torch.full((len(examples), steps), torch.nan)
    weights = torch.zeros(len(examples), steps)
    for row, each in enumerate(examples):
        targets[row, : len(each.targets)] = torch.from_numpy(each.targets)
        weights[row, : len(each.weights)] = torch.from_numpy(each.weights)
    batch = {"names": [each.name for each in examples], "targets": targets, "weights": weights}
    if examples[0].states is None:
        return batch | pad([each.encoded for each in examples])
    states = [each.states.float() for each in examples if each.states is not None]
    return batch | {"states": nn.utils.rnn.pad_sequence(states, batch_first=True)}


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of the head, the decoder, and its embeddings."""

    head: float
    decoder: float
    embeddings: float


class StepTrainer(Trainer):
    """A Trainer whose loss is exact under accumulation, several processes and uneven numbers of steps.

    A sum of losses is divided by the units (see ``objectives``) of everything that goes into one optimizer step, on all
    processes, so that how the data is cut into batches changes nothing.
    """

    loss_is_scaled_for_ga = True
    objective: ObjectiveSettings

    def __init__(
        self,
        network: StepScorer,
        args: TrainingArguments,
        train: Sequence[Example],
        held_out: Sequence[Example],
        objective: ObjectiveSettings,
        rates: Rates,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            model=network,
            args=args,
            data_collator=collate,
            train_dataset=Examples(train),
            eval_dataset=Examples(held_out) if held_out else None,
            callbacks=[*callbacks, _StopAtNaN(self)],
        )
        self.remove_callback(PrinterCallback)
        self.objective = objective
        self.rates = rates
        self.in_this_step: list[str] = []

    # --- loss -------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one optimizer step, and the units in them: of all processes, divided by their number."""
        batches = list(islice(epoch_iterator, num_batches))
        count = torch.zeros((), device=device)
        for batch in batches:
            count += units(batch["targets"].to(device), batch["weights"].to(device), self.objective)
        self.in_this_step = [name for batch in batches for name in batch["names"]]
        total: Tensor = self.accelerator.reduce(count, reduction="mean")  # the processes' gradients are averaged, too
        return batches, total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the loss of the optimizer step.

        Raises:
            CpmiError: it is not finite.
        """
        assert not return_outputs  # noqa: S101 - ``evaluate`` is our own
        assert isinstance(num_items_in_batch, Tensor)  # noqa: S101
        inputs = dict(inputs)
        names, targets, weights = (inputs.pop(key) for key in ("names", "targets", "weights"))
        scores = model(**inputs)
        select = (self.state.epoch or 0) >= 1
        loss = loss_sum(scores, targets, weights, self.objective, select=select)
        if not torch.isfinite(loss):
            raise _not_finite("loss", self.state.global_step, names)
        return loss / num_items_in_batch.clamp(min=torch.finfo(loss.dtype).tiny)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss over the held-out trajectories, each step counted once, however many processes there are."""
        del ignore_keys
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, Examples)  # noqa: S101
        mine = range(self.args.process_index, len(dataset), self.args.world_size)
        order = sorted(mine, key=lambda index: len(dataset[index]["input_ids"]))
        found = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        network: Any = self.accelerator.unwrap_model(self.model)
        network.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, len(order), self.args.eval_batch_size):
                batch = collate([dataset[index] for index in order[start : start + self.args.eval_batch_size]])
                inputs: dict[str, Any] = self._prepare_inputs(batch)
                targets, weights = inputs.pop("targets"), inputs.pop("weights")
                del inputs["names"]
                found[0] += loss_sum(network(**inputs), targets, weights, self.objective)
                found[1] += units(targets, weights, self.objective)
        loss, count = self.accelerator.reduce(found, reduction="sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / count if count else math.nan}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate of its own for the head and for embeddings."""
        if self.optimizer is None:
            network: Any = self.model if model is None else model
            embeddings = {
                id(weight)
                for module in network.modules()
                if isinstance(module, nn.Embedding)
                for weight in module.parameters()
            }
            groups: dict[float, list[nn.Parameter]] = {}
            for name, weight in network.named_parameters():
                if weight.requires_grad:
                    is_head = name.removeprefix("module.").startswith("score.")
                    other = self.rates.embeddings if id(weight) in embeddings else self.rates.decoder
                    groups.setdefault(self.rates.head if is_head else other, []).append(weight)
            listed = [{"params": weights, "lr": rate} for rate, weights in groups.items()]
            self.optimizer = torch.optim.AdamW(listed, weight_decay=self.args.weight_decay)
        return self.optimizer

    # --- checkpoints: what is trained, and nothing else -------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that are trained; a frozen decoder need not be written again and again."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            weights = {name: weight.detach().contiguous() for name, weight in self._trained().items()}
            save_file(weights, folder / _WEIGHTS)

    def _trained(self) -> dict[str, nn.Parameter]:
        network: Any = self.accelerator.unwrap_model(self.model)
        return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(saved[name])

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        elif self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


class _StopAtNaN(TrainerCallback):
    """An optimizer step with a gradient that is not finite would spoil all weights; it stops before."""

    def __init__(self, trainer: StepTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control
        for weight in kwargs["model"].parameters():
            if weight.grad is not None and not torch.isfinite(weight.grad).all():
                raise _not_finite("gradient", state.global_step, self._trainer.in_this_step)


def _not_finite(what: str, step: int, names: Sequence[str]) -> CpmiError:
    shown = ", ".join(names[:16]) + (", ..." if len(names) > 16 else "")
    return CpmiError(
        f"the {what} of optimizer step {step + 1} is not finite; its trajectories are {shown}; look at them, or "
        "lower the learning rate"
    )


class Report(TrainerCallback):
    """Tells how far training is."""

    def __init__(self, on_progress: Callable[[int, int, dict[str, float]], None]) -> None:
        """Call ``on_progress(step, steps, latest figures)`` after each optimizer step."""
        self._on_progress = on_progress
        self._latest: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control
        logs: dict[str, float] = kwargs.get("logs") or {}
        self._latest |= {name: logs[name] for name in ("loss", "eval_loss") if name in logs}
        self._on_progress(state.global_step, state.max_steps, dict(self._latest))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, control, kwargs
        self._on_progress(state.global_step, state.max_steps, dict(self._latest))


def best_constant(examples: Sequence[Example], settings: ObjectiveSettings) -> float:
    """The score that, given to every step, has the least loss; 0 where it is not finite, which training tells of."""
    score = torch.zeros((), requires_grad=True)
    loss = _loss_of_constant(score, examples, settings)
    (slope,) = torch.autograd.grad(loss, score)
    if not (torch.isfinite(loss) and torch.isfinite(slope)):
        return 0.0
    finder = torch.optim.LBFGS([score], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        finder.zero_grad()
        value = _loss_of_constant(score, examples, settings)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    finder.step(closure)  # type: ignore[no-untyped-call]
    return float(score.detach())


def constant_loss(score: float, examples: Sequence[Example], settings: ObjectiveSettings) -> float:
    """The loss of these trajectories if every step has this score."""
    with torch.no_grad():
        return float(_loss_of_constant(torch.tensor(score), examples, settings))


def _loss_of_constant(score: Tensor, examples: Sequence[Example], settings: ObjectiveSettings) -> Tensor:
    total, count = torch.zeros(()), torch.zeros(())
    for start in range(0, len(examples), _AT_A_TIME):  # pairs of steps take room
        some = [
            replace(each, states=torch.zeros(len(each.targets), 1)) for each in examples[start : start + _AT_A_TIME]
        ]
        batch = collate([{"example": each} for each in some])
        targets, weights = batch["targets"], batch["weights"]
        total = total + loss_sum(score.expand_as(targets), targets, weights, settings)
        count = count + units(targets, weights, settings)
    return total / count.clamp(min=1e-9)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; half of one, which a kill left behind, is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # what is written last
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            return str(path)
    return None
