"""The one place that turns a trajectory into token ids and the positions of its steps, in training and inference.

Pieces are tokenized one by one and joined by their ids, so that a separator can never merge with what stands beside
it, and the position of a step is known by construction.
"""

from __future__ import annotations

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
        before_first: before the first step, tokenized with it.
        step_prefix: before each step, with ``{k}`` for its number (from 1), unless the step begins with ``Step``.
    """

    opening: str = ""
    after_question: str = "\n"
    separator: str = "\n\n"
    between: str = ""
    before_first: str = ""
    step_prefix: str = ""

    def __post_init__(self) -> None:
        if not self.separator:
            raise InputError("the separator of steps is empty; name one, for example a blank line")
        try:
            self.step_prefix.format(k=1)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"the prefix of steps {self.step_prefix!r} may hold {{k}} and no other field") from error


class Encoder(Protocol):
    """Turns trajectories into ids and positions."""

    def encode(self, trajectory: Trajectory) -> Encoded:
        """Ids, and a position for each step."""
        ...


class JoinedEncoder:
    """Steps one after the other, each behind it a separator."""

    def __init__(
        self, tokenizer: SegmentTokenizer, form: StepFormat = StepFormat(), *, pieces_alone: bool = False
    ) -> None:
        """Check that the tokenizer can say the separator.

        Args:
            pieces_alone: every piece is tokenized as a text of its own, and the token that begins a sequence stands
                first wherever the tokenizer has one, as TRL did it. Else a piece is tokenized as it stands inside a
                text.

        Raises:
            InputError: the separator has no tokens of its own, or they say something else.
        """
        self.form = form
        self._tokenizer = tokenizer
        self._alone = pieces_alone
        self._prefix = tokenizer.begin if pieces_alone else tokenizer.prefix
        self.separator_ids = self._ids(form.separator)
        said = tokenizer.text_of(self.separator_ids)
        if said != form.separator and not pieces_alone:
            raise InputError(
                f"this tokenizer reads the separator {form.separator!r} as {said!r}; choose another with --separator"
            )

    @property
    def merges(self) -> bool:
        """Whether a text that holds the separator has other tokens than its pieces, so that others must join by ids."""
        encode = self._tokenizer.encode
        mark, marks = self.form.separator, self.separator_ids
        return any(
            encode(before + mark + after) != encode(before) + marks + encode(after)
            for before in ("a", ".", "1")
            for after in ("A", "a", "T", "1")
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.encode(text, first=self._alone)

    def encode(self, trajectory: Trajectory) -> Encoded:
        """See ``Encoder.encode``."""
        form, encode = self.form, self._ids
        begin = form.opening + trajectory.question.strip() + form.after_question
        ids = [*self._prefix, *self._tokenizer.encode(begin, first=True)]
        ends = []
        for number, step in enumerate(trajectory.steps, start=1):
            if number > 1 and form.between:
                ids += encode(form.between)
            text = step.strip()
            if form.step_prefix and not text.startswith("Step"):
                text = form.step_prefix.format(k=number) + text
            ids += encode(form.before_first + text if number == 1 else text)
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
