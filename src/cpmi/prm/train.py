"""Train a process reward model: from rows of targets to a checkpoint that everybody can load."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpmi import __version__
from cpmi.errors import CpmiError, InputError, require
from cpmi.models import hub_name
from cpmi.models.loading import Loaded
from cpmi.models.memory import is_out_of_memory
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.prm.arguments import training_arguments
from cpmi.prm.checkpoint import Card, load_base, old_names_of_peft, save_checkpoint
from cpmi.prm.data import TargetRow, check_targets, share_that_holds, split_by_question, step_weights
from cpmi.prm.encode import Encoded, JoinedEncoder
from cpmi.prm.features import FeatureCache
from cpmi.prm.network import Scaled, StepScorer, decoder_of
from cpmi.prm.objectives import units
from cpmi.prm.settings import TrainReport, TrainSettings
from cpmi.prm.states import StateReader
from cpmi.prm.trainer import Example, Rates, Report, StepTrainer, best_constant, constant_loss, last_checkpoint
from cpmi.records import JSON, write_whole

logger = logging.getLogger("cpmi")

CHECKPOINTS = "checkpoints"  # in the folder to work in

OnProgress = Callable[[str, int, int, Mapping[str, float]], None]


def train(
    rows: Sequence[TargetRow],
    settings: TrainSettings,
    output: Path,
    *,
    maps: Sequence[Mapping[str, JSON]] = (),
    features: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> TrainReport:
    """Train on rows of targets and write the reward model to ``output``.

    What is needed to go on lies in ``OUTPUT.training`` until it is done: the same call goes on from the last
    whole checkpoint. Under ``torchrun`` or ``accelerate launch`` all processes call this.

    Args:
        maps: from rewards to targets, to be kept in the checkpoint.
        features: folder for the states of a frozen decoder, to be shared by several trainings; None: in
            ``OUTPUT.training``.
        on_progress: called with the phase, how far it is, of how much, and the latest figures.

    Raises:
        InputError: rows that nothing can be learned from, a model that does not load, trajectories that are too long,
            another training in ``OUTPUT.training``.
        CpmiError: a loss that is not finite, a full disk.
    """
    for package in ("transformers", "accelerate"):
        require(package, "train")
    check_targets(rows, probabilities=settings.objective.kind.probabilities)
    return _Training(rows, settings.resolved(len(rows)), output, maps, features, on_progress).run()


class _Training:
    def __init__(
        self,
        rows: Sequence[TargetRow],
        settings: TrainSettings,
        output: Path,
        maps: Sequence[Mapping[str, JSON]],
        features: Path | None,
        on_progress: OnProgress,
    ) -> None:
        self.rows = rows
        self.settings = settings
        self.output = output
        self.maps = maps
        if not output.name:
            raise InputError(f"{output} names no folder of its own; choose another --output")
        self.work = output.with_name(f"{output.name}.training")
        self.features = features or self.work / "features"
        place = self.features.resolve()
        if features is not None and {output.resolve(), self.work.resolve()} & {place, *place.parents}:
            raise InputError(f"{features} lies in the folder of the reward model; choose another --features")
        self.on_progress = on_progress
        self.report = TrainReport(output)

    def run(self) -> TrainReport:
        settings = self.settings
        if self.output.exists():
            raise InputError(f"{self.output} is there already; choose another --output, or remove it")
        self.args = training_arguments(settings, self.work / CHECKPOINTS)
        torch.manual_seed(settings.seed)
        loaded = self._load()
        encoder = JoinedEncoder(SegmentTokenizer(loaded.tokenizer), settings.form)
        rows, encoded = self._encode(encoder, loaded)
        weights = step_weights(rows, settings.weights)
        used = [i for i, each in enumerate(weights) if (each > 0).any()]
        self.report.unused += len(rows) - len(used)
        held = self._hold_out([rows[i] for i in used])
        targets = [rows[i].array("targets") for i in used]
        self._check_units(targets, [weights[i] for i in used], held)
        network = self._network(loaded)
        self._claim_work(loaded)  # until here nothing was spent
        examples = [Example(rows[i].id, encoded[i], rows[i].array("targets"), weights[i]) for i in used]
        if settings.tune == "features":
            states = self._states([example.encoded for example in examples], network, loaded)
            examples = [replace(example, states=state) for example, state in zip(examples, states, strict=True)]
        train_on = [example for example, out in zip(examples, held, strict=True) if not out]
        watch = [example for example, out in zip(examples, held, strict=True) if out]
        self.report.steps = int(sum((each.weights > 0).sum() for each in train_on))
        self._train(network, train_on, watch)
        self._save(loaded, encoder)
        return self.report

    # --- before -----------------------------------------------------------------------------------------------------

    @property
    def _is_first(self) -> bool:
        return int(self.args.process_index) == 0

    def _claim_work(self, loaded: Loaded) -> None:
        """The folder to work in is this training's own.

        Raises:
            InputError: it holds what another training has paid for, with what differs.
        """
        settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        for name in ("log_to", "forward_size", "gradient_checkpointing"):
            del settings[name]  # they change nothing that is learned
        settings |= {"base": [settings["base"][name] for name in ("name", "dtype")], "base_revision": loaded.revision}
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(repr(dataclasses.astuple(row)).encode())
        manifest = settings | {"targets": digest.hexdigest()}
        file = self.work / "manifest.json"
        with self.args.main_process_first(desc="claim"):
            if self._is_first and file.exists() and last_checkpoint(self.work / CHECKPOINTS):
                there = json.loads(file.read_text(encoding="utf-8"))
                if differ := sorted(name for name in manifest if there.get(name) != manifest[name]):
                    raise InputError(
                        f"{self.work} holds an unfinished training with other settings ({', '.join(differ)}); remove "
                        "it, or choose another --output"
                    )
            elif self._is_first:
                write_whole(file, (json.dumps(manifest, indent=1) + "\n").encode())

    def _load(self) -> Loaded:
        base = self.settings.base
        if self.settings.tune == "full" and base.dtype == "auto":
            # Small updates would be lost in the rounding of bfloat16 weights.
            base = dataclasses.replace(base, dtype="float32")
        if self.args.world_size > 1 and not self.args.use_cpu:
            base = dataclasses.replace(base, device=str(self.args.device))
        return load_base(base)

    def _encode(self, encoder: JoinedEncoder, loaded: Loaded) -> tuple[list[TargetRow], list[Encoded]]:
        """Rows and their tokens, within the length that the decoder takes.

        Raises:
            InputError: some are too long, and nothing is to be cut.
        """
        settings = self.settings
        context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        room = min(filter(None, (settings.max_tokens, context)), default=None)
        rows, encoded = [], []
        longest = 0
        for row in self.rows:
            each = encoder.encode(row.trajectory)
            self.report.stray_marks += encoder.stray_marks(each) > 0
            self.report.unused += not each.ends
            if room is not None and len(each) > room:
                longest = max(longest, len(each))
                fitting = sum(end < room for end in each.ends) if settings.too_long == "truncate" else 0
                self.report.dropped += not fitting
                self.report.steps_cut += len(row.steps) - fitting
                each = each.first_steps(fitting)
                row = row.first_steps(fitting)
            if each.ends:
                rows.append(row)
                encoded.append(each)
        if longest and settings.too_long == "refuse":
            raise InputError(
                f"{self.report.dropped} of {len(self.rows)} trajectories have more than {room} tokens (up to "
                f"{longest}); say --too-long truncate (cut the steps that do not fit) or drop"
            )
        if not rows:
            raise InputError(f"no trajectory is left: all have more than {room} tokens")
        return rows, encoded

    def _hold_out(self, rows: Sequence[TargetRow]) -> list[bool]:
        """Which rows to watch the loss on.

        Raises:
            InputError: too few questions for both sides.
        """
        share = share_that_holds(rows, self.settings.held_out, self.settings.seed)
        kept, held = split_by_question(rows, share, self.settings.seed)
        if not kept or (self.settings.held_out and not held):
            side = "to hold out" if kept else "to train on"
            raise InputError(f"too few questions: none is left {side}; choose another --held-out (0: none)")
        self.report.trained, self.report.held_out = len(kept), len(held)
        out = {id(row) for row in held}
        return [id(row) in out for row in rows]

    def _check_units(self, targets: Sequence[Any], weights: Sequence[Any], held: Sequence[bool]) -> None:
        """There is something to learn, and to watch.

        Raises:
            InputError: nothing to rank; or all targets on one side of what divides them.
        """
        objective = self.settings.objective
        used = np.concatenate([row[weight > 0] for row, weight in zip(targets, weights, strict=True)])
        if objective.kind.hard and len(set((used > objective.hard_at).tolist())) < 2:
            raise InputError(f"all targets are on one side of {objective.hard_at:g}; choose another --hard-at")
        for side, name in ((False, "to train on"), (True, "held out")):
            some = [
                (torch.from_numpy(row)[None], torch.from_numpy(weight)[None])
                for row, weight, out in zip(targets, weights, held, strict=True)
                if out == side
            ]
            if some and not any(units(row, weight, objective) for row, weight in some):
                raise InputError(f"no trajectory {name} has two steps with different targets, so nothing can be ranked")

    def _network(self, loaded: Loaded) -> StepScorer:
        """What is trained, with gradients for that alone."""
        settings, model = self.settings, loaded.model
        width = model.score.in_features
        if settings.head == "mlp":
            model.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)).to(model.device)
        model.score.float()
        if settings.tune == "lora":
            model = self._with_adapters(model)
        elif settings.tune in ("features", "head"):
            model.requires_grad_(False)
            model.score.requires_grad_(True)
        inner = model.get_base_model() if settings.tune == "lora" else model
        network = StepScorer(decoder_of(inner, settings.base.name), inner.score)
        if settings.gradient_checkpointing:
            network.save_memory()
        self.model = model
        return network

    def _with_adapters(self, model: Any) -> Any:
        peft = require("peft", "train")
        lora = self.settings.lora
        targets = "all-linear" if lora.targets == ("all-linear",) else list(lora.targets)
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            modules_to_save=["score"],
        )
        try:
            with old_names_of_peft():
                return peft.get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"adapters cannot be added: {error}; name layers with --lora-targets") from error

    def _states(self, encoded: Sequence[Encoded], network: StepScorer, loaded: Loaded) -> list[torch.Tensor]:
        """The states of all trajectories; each process computes its share."""
        start = time.perf_counter()
        self.features.parent.mkdir(parents=True, exist_ok=True)
        cache = FeatureCache(self.features)
        with self.args.main_process_first(desc="features"):
            cache.require(loaded.revision, str(loaded.model.dtype).removeprefix("torch."))
        reader = StateReader(network.eval(), loaded.model.device, batch_tokens=self.settings.base.batch_tokens)
        mine = encoded[self.args.process_index :: self.args.world_size]
        done = 0
        tokens = 0

        def count(found: Any) -> None:
            nonlocal done, tokens
            done += 1
            tokens += found.cost.tokens_scored
            self.on_progress("features", done, len(mine), {"tokens": float(tokens)})

        found = cache.states(mine, reader, count)
        if self.args.world_size > 1:
            torch.distributed.barrier()
            found = FeatureCache(self.features).states(encoded, reader)
        for example, each in zip(encoded, found, strict=True):
            if each.states is None:
                raise CpmiError(f"a trajectory of {len(example)} tokens has no features: {each.error}")
            self.report.cost += each.cost
        self.report.seconds["features"] = time.perf_counter() - start
        return [each.states for each in found if each.states is not None]

    # --- training ---------------------------------------------------------------------------------------------------

    def _train(self, network: StepScorer, train_on: Sequence[Example], watch: Sequence[Example]) -> None:
        from transformers import EarlyStoppingCallback

        settings, args = self.settings, self.args
        constant = best_constant(train_on, settings.objective)
        if settings.tune == "features":
            states = [each.states for each in train_on if each.states is not None]
            network = StepScorer(None, Scaled.over(network.score, states, constant))
        callbacks: list[Any] = [Report(lambda step, steps, latest: self.on_progress("training", step, steps, latest))]
        if watch:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
        rates = Rates(settings.head_rate or 0, settings.rate or 0, settings.embedding_rate)
        torch.manual_seed(settings.seed)
        start = time.perf_counter()
        with _quietly():
            trainer = StepTrainer(network, args, train_on, watch, settings.objective, rates, callbacks)
            self._go(trainer)
        report = self.report
        report.seconds["training"] = time.perf_counter() - start
        report.history = [
            {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
            for row in trainer.state.log_history
            if "loss" in row or "eval_loss" in row
        ]
        if watch:
            report.best_loss = trainer.state.best_metric
            report.constant_loss = constant_loss(constant, watch, settings.objective)
        report.epochs = float(trainer.state.epoch or 0)
        if isinstance(network.score, Scaled):
            network.score.fold()

    def _go(self, trainer: StepTrainer) -> None:
        """Train, or go on.

        Raises:
            CpmiError: memory or disk ran out.
        """
        from safetensors import SafetensorError

        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(self.work / CHECKPOINTS))
        except (OSError, SafetensorError) as error:
            raise CpmiError(
                f"{self.work}: cannot be written or read ({error}); make room, and run the same again"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if "PytorchStreamWriter" in str(error):
                raise CpmiError(
                    f"{self.work}: cannot be written ({error}); make room, and run the same again"
                ) from error
            if not is_out_of_memory(error):
                raise
            size = self.args.per_device_train_batch_size
            raise CpmiError(
                f"out of memory with {size} trajectories at a time; run the same with a smaller --forward-size, or "
                "with --gradient-checkpointing, and it goes on from the last whole epoch"
            ) from error

    # --- after ------------------------------------------------------------------------------------------------------

    def _save(self, loaded: Loaded, encoder: JoinedEncoder) -> None:
        settings = self.settings
        card = Card(
            form=settings.form,
            separator_ids=encoder.separator_ids,
            reading=settings.objective.kind.reading,
            objective=settings.objective.name,
            base=settings.base.name,
            base_revision=loaded.revision,
            frozen=settings.tune in ("features", "head"),
            maps=tuple(self.maps),
        )
        if self.args.world_size > 1:
            torch.distributed.barrier()  # all have read the best checkpoint, which is about to be removed
        if self._is_first:
            model = self.model
            if settings.tune == "lora" and settings.lora.merge:
                model = model.merge_and_unload()
            dtype = _own_dtype(settings, loaded)
            if not (settings.tune == "lora" and not settings.lora.merge):
                model.to(dtype)
            if settings.head == "mlp":
                model.config.architectures = [_MLP_ARCHITECTURES.get(model.config.model_type, "StepScorerWithMLPHead")]
            with _quietly():
                save_checkpoint(self.output, model, loaded.tokenizer, card, self._record(encoder))
            if (logs := self.work / CHECKPOINTS / "runs").exists():  # TensorBoard's
                shutil.move(logs, self.output / "runs")
            shutil.rmtree(self.work)
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _record(self, encoder: JoinedEncoder) -> dict[str, JSON]:
        import transformers

        report: dict[str, JSON] = dataclasses.asdict(self.report) | {"output": str(self.output)}
        settings: dict[str, JSON] = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        versions: dict[str, JSON] = {
            "cpmi": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }
        return {
            "settings": settings,
            "report": report,
            "versions": versions,
            "processes": self.args.world_size,
            "separator_merges_in_text": encoder.merges,
        }


_MLP_ARCHITECTURES = {"qwen2": "Qwen2ForProcessRewardModel"}


def _own_dtype(settings: TrainSettings, loaded: Loaded) -> torch.dtype:
    """The dtype of the base checkpoint, which the reward model is saved in."""
    from transformers import AutoConfig

    source = hub_name(settings.base.name)
    dtype: torch.dtype | None = next(iter(loaded.model.parameters())).dtype
    if settings.tune == "full" and settings.base.dtype == "auto" and not source.endswith(".gguf"):
        dtype = AutoConfig.from_pretrained(
            Path(source).expanduser() if Path(source).expanduser().exists() else source
        ).dtype
    return torch.float32 if dtype is None else dtype


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Transformers tells of file systems and of bars; errors it raises."""
    from transformers.utils import logging

    said: Any = logging

    level, shows_bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()  # of the files that are written; training has one of its own
    try:
        yield
    finally:
        said.set_verbosity(level)
        if shows_bars:
            said.enable_progress_bar()
