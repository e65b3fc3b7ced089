"""The one place that turns a trajectory into token ids and the positions of its steps, in training and inference.

Pieces are tokenized one by one and joined by their ids, so that a separator can never merge with what stands beside
it, and the position of a step is known by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cpmi.errors import InputError
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.records import Trajectory


@dataclass(frozen=True, slots=True)
class Encoded:
    """A trajectory as a reward model reads it.

    Attributes:
        ids: (tokens,) token ids.
        ends: (steps,) the position in ``ids`` at which each step's score is read, ascending.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def first_steps(self, count: int) -> Encoded:
        """What is left of it after ``count`` steps."""
        return Encoded(self.ids[: self.ends[count - 1] + 1] if count else (), self.ends[:count])


@dataclass(frozen=True, slots=True)
class StepFormat:
    """How a trajectory is written: ``opening question after_question``, then for each step ``step separator between``.

    The score of a step is read at the last token of its separator. By default a blank line ends a step and a line break
    the question, so that (with most tokenizers) a token of its own marks the steps, and nothing else.

    Attributes:
        opening: before the question.
        after_question: between the question and the first step.
        separator: what ends every step, the last one too.
        between: after a separator, where another step follows.
        step_prefix: before each step, with ``{k}`` for its number (from 1), unless the step begins with ``Step``.
    """

    opening: str = ""
    after_question: str = "\n"
    separator: str = "\n\n"
    between: str = ""
    step_prefix: str = ""

    def __post_init__(self) -> None:
        if not self.separator:
            raise InputError("the separator of steps is empty; name one, for example a blank line")


class Encoder(Protocol):
    """Turns trajectories into ids and positions."""

    def encode(self, trajectory: Trajectory) -> Encoded:
        """Ids, and a position for each step."""
        ...


class JoinedEncoder:
    """Steps one after the other, each behind it a separator."""

    def __init__(self, tokenizer: SegmentTokenizer, form: StepFormat = StepFormat()) -> None:
        """Check that the tokenizer can say the separator.

        Raises:
            InputError: the separator has no tokens of its own, or they say something else.
        """
        self.form = form
        self.separator_ids = tokenizer.encode(form.separator)
        self._tokenizer = tokenizer
        said = tokenizer.text_of(self.separator_ids)
        if said != form.separator:
            raise InputError(
                f"this tokenizer reads the separator {form.separator!r} as {said!r}; choose another with --separator"
            )

    @property
    def merges(self) -> bool:
        """Whether a text that holds the separator has other tokens than its pieces, so that others must join by ids."""
        encode = self._tokenizer.encode
        ends = ("a", ".", "1")
        return any(encode(e + self.form.separator + "A") != encode(e) + self.separator_ids + encode("A") for e in ends)

    def encode(self, trajectory: Trajectory) -> Encoded:
        """See ``Encoder.encode``."""
        form, encode = self.form, self._tokenizer.encode
        begin = form.opening + trajectory.question.strip() + form.after_question
        ids = [*self._tokenizer.prefix, *encode(begin, first=True)]
        ends = []
        for number, step in enumerate(trajectory.steps, start=1):
            if number > 1 and form.between:
                ids += encode(form.between)
            text = step.strip()
            if form.step_prefix and not text.startswith("Step"):
                text = form.step_prefix.format(k=number) + text
            ids += encode(text)
            ids += self.separator_ids
            ends.append(len(ids) - 1)
        return Encoded(tuple(ids), tuple(ends))

    def stray_marks(self, encoded: Encoded) -> int:
        """How often the last token of the separator stands elsewhere: whoever looks for it finds more steps."""
        return encoded.ids.count(self.separator_ids[-1]) - len(encoded.ends)


class DialogEncoder:
    """A conversation in which the user says step after step and the model answers each with ``+`` (RLHFlow's form).

    The score of a step is read where the model is about to answer it.
    """

    GOOD = "+"

    def __init__(self, tokenizer: SegmentTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, trajectory: Trajectory) -> Encoded:
        """See ``Encoder.encode``.

        Raises:
            InputError: the model has no chat template, or one that rewrites earlier turns.
        """
        turns: list[tuple[str, str]] = []
        ids: list[int] = []
        ends = []
        before = ""
        for number, step in enumerate(trajectory.steps):
            said = f"{trajectory.question} {step}" if number == 0 else step
            turns.append(("user", said))
            text = self._tokenizer.conversation(turns)
            if not text.startswith(before):
                raise InputError("this model's chat template rewrites earlier turns, so steps cannot be read from it")
            ids += self._tokenizer.encode(text[len(before) :], first=not ids)
            ends.append(len(ids) - 1)
            before = text + self.GOOD
            ids += self._tokenizer.encode(self.GOOD)
            turns.append(("assistant", self.GOOD))
        return Encoded(tuple(ids[: ends[-1] + 1] if ends else ids), tuple(ends))


def encode_all(encoder: Encoder, trajectories: Sequence[Trajectory]) -> list[Encoded]:
    """``encode`` for each, in order."""
    return [encoder.encode(trajectory) for trajectory in trajectories]
