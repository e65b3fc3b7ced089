"""A model in training as a ``Scorer``: no second copy, no gradients, and the model as it was when scoring is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cpmi.models.hf import HFModel
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.protocols import ScoredTree, TokenTree, Truncation
from cpmi.records import JSON


class PolicyScorer:
    """Scores with the weights that a model of Transformers has at the moment.

    The model may stand behind PEFT (its adapters take part) or behind a wrapper that keeps it as ``module`` (DDP).
    Weights that are split over processes (FSDP, DeepSpeed's third stage) cannot be read this way: use a frozen copy.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "policy") -> None:
        self._model = bare(model)
        self._tokenizer = tokenizer
        self._segments = SegmentTokenizer(tokenizer)
        self._name = name
        self._engine: HFModel | None = None
        self._where: tuple[Any, Any] | None = None

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._segments.prefix

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """See ``Tokenizing.encode``."""
        return self._segments.encode(text, first=first)

    def describe(self) -> dict[str, JSON]:
        """It has no revision: it changes while it is trained."""
        return {"model": self._name, "revision": None, "dtype": str(self._model.dtype).removeprefix("torch.")}

    def logprobs(self, trees: Sequence[TokenTree], truncation: Truncation = Truncation()) -> list[ScoredTree]:
        """See ``Scorer.logprobs``."""
        with evaluating(self._model):
            return self._current().logprobs(trees, truncation)

    def _current(self) -> HFModel:
        """Made at the first call, and anew once the trainer has moved the model."""
        where = (self._model.device, self._model.dtype)
        if self._engine is None or self._where != where:
            self._engine, self._where = HFModel(self._model, self._tokenizer, name=self._name), where
        return self._engine


def bare(model: Any) -> Any:
    """The causal language model behind wrappers; adapters live in its layers and stay."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing); afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
