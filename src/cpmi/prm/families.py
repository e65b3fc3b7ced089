"""How the public process reward models are read: how their steps are written, and which scores they give."""

from __future__ import annotations

from dataclasses import dataclass

from cpmi.prm.encode import StepFormat


@dataclass(frozen=True, slots=True)
class Family:
    """A way to read a checkpoint.

    Attributes:
        form: how steps are written; None: as a dialog (``encode.DialogEncoder``).
        pieces_alone: see ``encode.JoinedEncoder``.
        words: the wrong and the right word of a language model's head; None: the checkpoint has a head ``score``.
    """

    form: StepFormat | None
    words: tuple[str, str] | None = None
    pieces_alone: bool = False


_QWEN_OPENING = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n"
)

FAMILIES: dict[str, Family] = {
    # TRL's PRMTrainer (until 1.13): prompt, then each step and a line break, no separator behind the prompt.
    "trl": Family(StepFormat(after_question="", separator="\n"), pieces_alone=True),
    # Qwen/Qwen2.5-Math-PRM-7B and 72B, ...-7B-PRM800K: its model card.
    "qwen2.5-math-prm": Family(StepFormat(_QWEN_OPENING, "<|im_end|>\n<|im_start|>assistant\n", "<extra_0>")),
    # peiyi9979/math-shepherd-mistral-7b-prm: its model card.
    "math-shepherd": Family(
        StepFormat(after_question="", separator=" ки", between="\n", before_first=" ", step_prefix="Step {k}: "),
        (" -", " +"),
    ),
    # RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data: its evaluation script.
    "rlhflow": Family(None, ("-", "+")),
}
