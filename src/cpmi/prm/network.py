"""The network of a process reward model: a decoder, and a head that reads a score from its state at each step's end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpmi.errors import InputError
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.prm.encode import Encoded


class StepScorer(nn.Module):
    """Scores of the steps of a batch; B trajectories, T tokens, S steps, H the width of the decoder."""

    def __init__(self, backbone: nn.Module | None, score: nn.Module) -> None:
        """Put a decoder and a head together.

        Args:
            backbone: (B, T) ids -> (B, T, H) states; None where states are computed elsewhere.
            score: H -> 1, a logit; or H -> 2, logits of wrong and right.
        """
        super().__init__()
        self.backbone = backbone
        self.score = score

    def forward(
        self,
        states: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """(B, S) scores, the logit of a step being right; 0 where ``ends`` or ``states`` are padding.

        Args:
            states: (B, S, H) the decoder's states at step ends, if they are known; else
            input_ids, attention_mask: (B, T), padded on the right;
            ends: (B, S) positions of step ends, -1 for padding.
        """
        if states is None:
            assert input_ids is not None, "neither states nor ids"  # noqa: S101
            assert ends is not None  # noqa: S101
            states = self.states(input_ids, attention_mask, ends)
        scores: Tensor = self.score(states.to(next(self.score.parameters()).dtype))
        return scores[..., 0] if scores.shape[-1] == 1 else scores[..., 1] - scores[..., 0]

    def states(self, input_ids: Tensor, attention_mask: Tensor | None, ends: Tensor) -> Tensor:
        """(B, S, H) the decoder's states at step ends; see ``forward``."""
        assert self.backbone is not None, "this scorer has no decoder"  # noqa: S101
        out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        states: Tensor = out.last_hidden_state
        places = ends.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states.gather(1, places).masked_fill(ends.unsqueeze(-1) < 0, 0)

    def train(self, mode: bool = True) -> StepScorer:
        """See ``nn.Module.train``; a decoder that is not trained has no dropout either."""
        super().train(mode)
        if self.backbone is not None and not any(weight.requires_grad for weight in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def save_memory(self) -> None:
        """Gradient checkpointing: compute the decoder's inner states again instead of keeping them."""
        backbone: Any = self.backbone
        name = "activation_checkpointing_enable"  # what Transformers 5.24 calls it
        enable = getattr(backbone, name, None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def pad(encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` (B, T) and ``ends`` (B, S) of a batch, padded on the right."""
    tokens, steps = max(map(len, encoded)), max(len(each.ends) for each in encoded)
    ids = torch.zeros(len(encoded), tokens, dtype=torch.int64)
    mask = torch.zeros(len(encoded), tokens, dtype=torch.int64)
    ends = torch.full((len(encoded), steps), -1, dtype=torch.int64)
    for row, each in enumerate(encoded):
        ids[row, : len(each)] = torch.tensor(each.ids, dtype=torch.int64)
        mask[row, : len(each)] = 1
        ends[row, : len(each.ends)] = torch.tensor(each.ends, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": mask, "ends": ends}


def decoder_of(model: Any, name: str) -> nn.Module:
    """The decoder inside a model of Transformers that has a head.

    Raises:
        InputError: it is no decoder.
    """
    decoder = getattr(model, model.base_model_prefix, None)
    if decoder is None or getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"model {name}: an architecture ({type(model).__name__}) without a decoder to read steps with")
    return decoder  # type: ignore[no-any-return]


def head_of_words(model: Any, tokenizer: SegmentTokenizer, words: tuple[str, str], name: str) -> nn.Linear:
    """The part of a language model's head that says two words: wrong, right.

    Their softmax needs no other rows, so that nothing of the size of the vocabulary is computed.

    Raises:
        InputError: a word is not one token, or the model does something else to its logits.
    """
    config = model.config.get_text_config()
    for field in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise InputError(f"model {name}: reward models of an architecture with {field} cannot be read")
    rows = []
    for word in words:
        ids = tokenizer.encode(word)
        if len(ids) != 1:
            raise InputError(f"model {name}: its tokenizer has no single token for {word!r}; is it of another family?")
        rows.append(ids[0])
    whole = model.get_output_embeddings()
    head = nn.Linear(whole.in_features, len(rows), bias=whole.bias is not None)
    with torch.no_grad():
        head.weight.copy_(whole.weight[rows])
        if whole.bias is not None:
            head.bias.copy_(whole.bias[rows])
    return head.to(whole.weight.device)


class Scaled(nn.Module):
    """A head behind a fixed scale for each of its inputs, so that all learn at one rate; ``fold`` takes it away.

    The states of a decoder differ a hundredfold in size from one dimension to the next.
    """

    def __init__(self, head: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("scale", scale)

    @classmethod
    def over(cls, head: nn.Module, states: Sequence[Tensor], constant: float) -> Scaled:
        """Scaled by the root mean square of each dimension.

        Args:
            states: (steps, H) of the trajectories to learn from.
            constant: the score that a linear head begins with at every step. It has no bias; but some dimensions are
                nearly constant, and ridge regression finds what combination of them is 1 everywhere.
        """
        squares, count = torch.zeros(states[0].shape[1]), sum(map(len, states))
        for some in _chunks(states):
            squares += some.square().sum(dim=0)
        scale = (squares / count).sqrt().clamp(min=1e-6)
        if isinstance(head, nn.Linear):
            gram, total = torch.zeros(len(scale), len(scale)), torch.zeros(len(scale))
            for some in _chunks(states):
                scaled = some / scale
                gram.addmm_(scaled.T, scaled)
                total += scaled.sum(dim=0)
            ridge = gram / count + 1e-3 * torch.eye(len(scale))
            with torch.no_grad():
                head.weight.copy_(constant * torch.linalg.solve(ridge, total / count))
        return cls(head.cpu(), scale)

    def forward(self, states: Tensor) -> Tensor:
        scale: Any = self.scale
        scores: Tensor = self.head(states / scale)
        return scores

    @torch.no_grad()
    def fold(self) -> None:
        """Make the head's own weights do it all."""
        head: Any = self.head
        first = head if isinstance(head, nn.Linear) else head[0]
        scale: Any = self.scale
        first.weight.div_(scale.to(first.weight.device))
        scale.fill_(1.0)


def _chunks(states: Sequence[Tensor]) -> Iterator[Tensor]:
    """(steps, H) in float32, of some hundred trajectories at a time."""
    for start in range(0, len(states), 512):
        yield torch.cat(list(states[start : start + 512])).float()
