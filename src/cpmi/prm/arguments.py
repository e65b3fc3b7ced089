"""How a training's settings become those of Transformers' Trainer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from cpmi.errors import InputError, require
from cpmi.prm.settings import TrainSettings

_FORWARD = {"features": 64, "head": 8, "lora": 8, "full": 8}  # trajectories in one pass, at most


def training_arguments(settings: TrainSettings, folder: Path) -> Any:
    """Transformers' own settings; making them joins the other processes, where there are some.

    Args:
        settings: resolved.
        folder: for checkpoints, and TensorBoard's files.

    Raises:
        InputError: a package to log with is missing, a device that is not free to choose, a batch that cannot be cut.
    """
    from transformers import TrainingArguments

    if settings.log_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("logging to wandb needs its package; run: pip install wandb")
    if settings.log_to == "tensorboard":
        require("tensorboard", "train")
    wanted = settings.base.device
    if ":" in wanted:
        raise InputError(f"device {wanted!r}: training takes the first it sees; use CUDA_VISIBLE_DEVICES")
    on_cpu = wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available())
    # Where only adapters or a head are trained, what is frozen computes in its own dtype anyway.
    suits = not on_cpu and settings.tune in ("lora", "full") and torch.cuda.is_bf16_supported()
    bf16 = suits if settings.bf16 is None else settings.bf16
    by_epoch = "epoch" if settings.held_out else "no"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.schedule,
        "train_sampling_strategy": "random" if settings.tune == "features" else "group_by_length",
        "eval_strategy": by_epoch,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": bool(settings.held_out),
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "logging_steps": 0.01,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "label_names": ["targets"],
        "seed": settings.seed,
        "use_cpu": on_cpu,
        "bf16": bf16,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not on_cpu,
        "report_to": [] if settings.log_to == "none" else [settings.log_to],
        "disable_tqdm": True,
        "restore_callback_states_from_checkpoint": True,  # patience that was lost already stays lost
    }
    args = TrainingArguments(**arguments)
    args._n_gpu = min(1, args.n_gpu)  # noqa: SLF001 - several GPUs are several processes here: torchrun
    batch = settings.batch_size or 1
    each = batch // args.world_size
    fitting = (size for size in range(min(_FORWARD[settings.tune], max(each, 1)), 0, -1) if each % size == 0)
    forward = settings.forward_size or next(fitting)
    if not each or batch % (forward * args.world_size):
        raise InputError(
            f"the batch of {batch} trajectories cannot be cut into {args.world_size} processes with {forward} at a "
            "time; choose another --batch-size or --forward-size"
        )
    args.per_device_train_batch_size = args.per_device_eval_batch_size = forward
    args.gradient_accumulation_steps = batch // (forward * args.world_size)
    return args
