"""Shared by all tests: no network, and the models that are costly to make."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cpmi.errors import InputError
from cpmi.models import ModelSettings, embedded_weights, open_model

if TYPE_CHECKING:
    from cpmi.models.hf import HFModel

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported, which is later
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch: tiny models gain nothing from more, and wait for them
sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests, e.g. tiny_models


@pytest.fixture(scope="session")
def smollm2() -> HFModel:
    """The real SmolLM2-135M-Instruct in float32; a test that uses it is marked ``real_model``."""
    from cpmi.models.hf import HFModel

    try:
        embedded_weights()
    except InputError as error:
        pytest.skip(str(error))
    model = open_model(ModelSettings("smollm2", dtype="float32", device="cpu"))
    assert isinstance(model, HFModel)
    return model
