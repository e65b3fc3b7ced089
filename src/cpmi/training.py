"""``cpmi train`` as a function: from a file of targets to a reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cpmi.errors import require
from cpmi.records import JSON
from cpmi.targets import maps_path, read_maps

if TYPE_CHECKING:
    from cpmi.prm.settings import TrainReport, TrainSettings
    from cpmi.prm.train import OnProgress


def train(
    targets: Path,
    settings: TrainSettings,
    output: Path,
    *,
    features: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> TrainReport:
    """Train on a file of targets; the maps that made them go into the checkpoint, if they lie beside it.

    See ``cpmi.prm.train.train``.
    """
    require("torch", "train")
    from cpmi.prm.data import read_targets
    from cpmi.prm.train import train as run

    rows = read_targets(targets)
    file = maps_path(targets)
    sources = {row.source for row in rows}
    maps: list[Mapping[str, JSON]] = []
    if file.exists():
        read_maps(file)  # says what is wrong with it, if anything is
        maps = [row for row in json.loads(file.read_text(encoding="utf-8")) if row["source"] in sources]
    return run(rows, settings, output, maps=maps, features=features, on_progress=on_progress)
