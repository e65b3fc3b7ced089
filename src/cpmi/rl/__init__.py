"""Step rewards for reinforcement learning: reward functions for TRL and verl, and guards against reward hacking.

Neither TRL nor verl is imported. See docs/rl.md.
"""

from __future__ import annotations

from cpmi.rl.completions import Attempt, ends_in_offsets, find_steps, token_ends
from cpmi.rl.guards import Guards
from cpmi.rl.reward import (
    CPMI_FOR_RL,
    PRM_FOR_RL,
    AsyncReward,
    CPMIReward,
    Judged,
    OutcomeReward,
    PRMReward,
    RewardSettings,
    StepReward,
)
from cpmi.rl.verl import DenseRewardManager, VerlScore

__all__ = [
    "CPMI_FOR_RL",
    "PRM_FOR_RL",
    "AsyncReward",
    "Attempt",
    "CPMIReward",
    "DenseRewardManager",
    "Guards",
    "Judged",
    "OutcomeReward",
    "PRMReward",
    "RewardSettings",
    "StepReward",
    "VerlScore",
    "ends_in_offsets",
    "find_steps",
    "token_ends",
]
