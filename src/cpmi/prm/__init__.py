"""Process reward models: reading, training, and using them as a source of step rewards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpmi.errors import require

if TYPE_CHECKING:
    from cpmi.models import ModelSettings
    from cpmi.prm.model import PRM


def open_prm(settings: ModelSettings, family: str | None = None, features: Path | None = None) -> PRM:
    """Load a reward model.

    Args:
        family: how one that was trained elsewhere is read, see ``cpmi.prm.families``.
        features: of a model with a frozen decoder: a folder to take its states from and to keep them in.

    Raises:
        InputError: nothing there, no reward model, a package missing, or another decoder's states.
    """
    require("torch", "hf")
    from cpmi.prm.checkpoint import open_checkpoint
    from cpmi.prm.features import FeatureCache
    from cpmi.prm.model import PRM

    cache = None if features is None else FeatureCache(features)
    return PRM(open_checkpoint(settings, family), settings, cache=cache)
