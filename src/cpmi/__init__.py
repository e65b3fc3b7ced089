"""Step-level rewards for chains of thought from a language model's own log-probabilities.

Importing this loads neither numpy nor torch; names are fetched when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpmi.errors import CpmiError, InputError
    from cpmi.labelers.cpmi import CPMI, CPMISettings
    from cpmi.labelers.negatives import NegativeSettings, SiblingAnswers
    from cpmi.models import ModelSettings, open_model
    from cpmi.prm.model import PRM
    from cpmi.prompts import Template
    from cpmi.records import Cost, StepRewards, Trajectory, read_rewards, read_trajectories, write_records

__version__ = "0.1.0.dev0"

__all__ = [
    "CPMI",
    "PRM",
    "CPMISettings",
    "Cost",
    "CpmiError",
    "InputError",
    "ModelSettings",
    "NegativeSettings",
    "SiblingAnswers",
    "StepRewards",
    "Template",
    "Trajectory",
    "open_model",
    "read_rewards",
    "read_trajectories",
    "write_records",
]

_HOMES = {
    "CPMI": "labelers.cpmi",
    "CPMISettings": "labelers.cpmi",
    "Cost": "records",
    "CpmiError": "errors",
    "InputError": "errors",
    "ModelSettings": "models",
    "NegativeSettings": "labelers.negatives",
    "PRM": "prm.model",
    "SiblingAnswers": "labelers.negatives",
    "StepRewards": "records",
    "Template": "prompts",
    "Trajectory": "records",
    "open_model": "models",
    "read_rewards": "records",
    "read_trajectories": "records",
    "write_records": "records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cpmi' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cpmi.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
