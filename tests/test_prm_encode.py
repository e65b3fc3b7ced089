"""Trajectories as token ids, and the positions of their steps: by hand, and what one pass for all steps rests on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from cpmi import Trajectory
from cpmi.errors import InputError
from cpmi.models.tokenizing import SegmentTokenizer
from cpmi.prm.encode import DialogEncoder, Encoded, JoinedEncoder, StepFormat
from tiny_models import byte_tokenizer, metaspace_tokenizer

BLANK_LINE = 258  # in the byte tokenizer with merges
BLANK_LINE_AFTER_STOP = 259
BEGIN = 256

TOKENIZERS = {
    "bytes": byte_tokenizer,
    "bytes, bos": lambda: byte_tokenizer(bos=True),
    "bytes, merges": lambda: byte_tokenizer(merges=True),
    "bytes, bos, merges": lambda: byte_tokenizer(bos=True, merges=True),
    "metaspace": metaspace_tokenizer,
}
FORMS = {
    "default": StepFormat(),
    "one line": StepFormat(separator="\n"),
    "numbered": StepFormat(
        opening="Q: ", after_question="\n\n", separator=" +\n", between="\n", step_prefix="Step {k}: "
    ),
    "words": StepFormat(after_question="", separator="T T", between="."),
}


@functools.cache
def segments(kind: str) -> SegmentTokenizer:
    return SegmentTokenizer(TOKENIZERS[kind]())


def bytes_of(text: str) -> tuple[int, ...]:
    """The ids of a text, byte by byte, as the byte tokenizer without merges has them."""
    return tuple(byte for letter in text for byte in segments("bytes").encode(letter))


def text_of(kind: str, encoded: Encoded) -> str:
    return segments(kind).text_of(encoded.ids)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    return text


a_form = st.sampled_from(list(FORMS.values()))
a_kind = st.sampled_from(list(TOKENIZERS))
# Whatever could merge with a separator, look like one, or be a token of its own; and anything else.
letters = st.sampled_from(
    ["\n", "\n\n", ".", " ", "T", "a", "+", "Step ", "</s>", "{k}", "é", "ש", "🙂"]
) | st.characters(codec="utf-8")
a_text = st.lists(letters, max_size=8).map("".join)
trajectories = st.builds(
    Trajectory,
    a_text.filter(str.strip),
    st.lists(a_text, max_size=5).map(tuple),
)
checked = settings(deadline=None, max_examples=150)


# --- by hand --------------------------------------------------------------------------------------------------------


def test_pieces_joined_by_their_ids() -> None:
    """``Q`` and a line break; ``one.`` and a blank line; ``two`` and a blank line."""
    encoded = JoinedEncoder(segments("bytes")).encode(Trajectory("Q", ("one.", "two")))
    assert encoded.ids == bytes_of("Q\none.\n\ntwo\n\n")
    assert encoded.ends == (7, 12)
    assert len(encoded) == 13


def test_the_first_token_comes_once() -> None:
    encoded = JoinedEncoder(segments("bytes, bos")).encode(Trajectory("Q", ("one.", "two")))
    assert encoded.ids == (BEGIN, *bytes_of("Q\none.\n\ntwo\n\n"))
    assert encoded.ends == (8, 13)


def test_a_separator_is_a_token_of_its_own_though_the_text_would_merge_it() -> None:
    tokenizer = segments("bytes, merges")
    assert BLANK_LINE_AFTER_STOP in tokenizer.encode("Q\none.\n\ntwo\n\n")
    encoded = JoinedEncoder(tokenizer).encode(Trajectory("Q", ("one.", "two")))
    assert encoded.ids == (*bytes_of("Q\none."), BLANK_LINE, *bytes_of("two"), BLANK_LINE)
    assert [encoded.ids[end] for end in encoded.ends] == [BLANK_LINE, BLANK_LINE]


def test_no_step_begins_with_the_space_that_sentencepiece_puts_before_a_text() -> None:
    """``▁T`` (258) and ``▁a`` (259) stand where a space is, and before the question, which opens the text."""
    tokenizer = segments("metaspace")
    line, blank, t, a = (tokenizer.encode(text)[0] for text in ("\n", " ", "T", "a"))
    encoded = JoinedEncoder(tokenizer).encode(Trajectory("T a", ("T", "a T")))
    assert encoded.ids == (BEGIN, 258, 259, line, t, line, line, a, 258, line, line)
    assert encoded.ends == (6, 10)
    assert blank not in encoded.ids


def test_everything_a_format_can_say() -> None:
    form = StepFormat("<", "|", separator=" ки\n", between="~", step_prefix="Step {k}: ")
    encoded = JoinedEncoder(segments("bytes"), form).encode(Trajectory("  Q?\n", (" one ", "Step two", "\nthree")))
    text = "<Q?|Step 1: one ки\n~Step two ки\n~Step 3: three ки\n"
    assert encoded.ids == bytes_of(text)
    ends = [len("<Q?|Step 1: one ки\n"), len("<Q?|Step 1: one ки\n~Step two ки\n"), len(text)]
    more = [2, 4, 6]  # bytes than letters so far
    assert encoded.ends == tuple(end + extra - 1 for end, extra in zip(ends, more, strict=True))


def test_a_step_without_text_still_has_a_place() -> None:
    encoded = JoinedEncoder(segments("bytes")).encode(Trajectory("Q", ("", " \n ", "x")))
    assert encoded.ids == bytes_of("Q\n\n\n\n\nx\n\n")
    assert encoded.ends == (3, 5, 8)


def test_without_steps_there_is_the_question() -> None:
    encoded = JoinedEncoder(segments("bytes, bos")).encode(Trajectory("Q", ()))
    assert encoded == Encoded((BEGIN, *bytes_of("Q\n")), ())


def test_the_first_steps_of_an_encoding() -> None:
    encoded = Encoded((10, 11, 12, 13, 14, 15), (2, 3, 5))
    assert encoded.first_steps(3) == encoded
    assert encoded.first_steps(2) == Encoded((10, 11, 12, 13), (2, 3))
    assert encoded.first_steps(1) == Encoded((10, 11, 12), (2,))
    assert encoded.first_steps(0) == Encoded((), ())


# --- what must hold -------------------------------------------------------------------------------------------------


@checked
@given(trajectories, a_kind, a_form)
def test_every_step_ends_with_the_separator_by_itself(trajectory: Trajectory, kind: str, form: StepFormat) -> None:
    """Ids are those of the pieces one after the other, and ends point at the last token of each separator."""
    tokenizer = segments(kind)
    encoded = JoinedEncoder(tokenizer, form).encode(trajectory)
    opening = tokenizer.encode(form.opening + trajectory.question.strip() + form.after_question, first=True)
    wanted = [*tokenizer.prefix, *opening]
    separator = list(tokenizer.encode(form.separator))
    for number, (step, end) in enumerate(zip(trajectory.steps, encoded.ends, strict=True)):
        numbered = form.step_prefix.replace("{k}", str(number + 1)) if not step.strip().startswith("Step") else ""
        wanted += tokenizer.encode(form.between) if number else ()
        wanted += tokenizer.encode(numbered + step.strip())
        wanted += separator
        assert end == len(wanted) - 1
        assert list(encoded.ids[end + 1 - len(separator) : end + 1]) == separator
    assert encoded.ids == tuple(wanted)


@checked
@given(trajectories, a_kind, a_form)
def test_the_first_steps_are_a_prefix_of_all(trajectory: Trajectory, kind: str, form: StepFormat) -> None:
    """Why one pass with a causal model equals a pass for every prefix of the steps."""
    encoder = JoinedEncoder(segments(kind), form)
    whole = encoder.encode(trajectory)
    for count in range(len(trajectory.steps) + 1):
        some = encoder.encode(Trajectory(trajectory.question, trajectory.steps[:count]))
        assert whole.ids[: len(some)] == some.ids
        assert whole.ends[:count] == some.ends
        if count:
            assert whole.first_steps(count) == some


@checked
@given(trajectories, st.sampled_from([kind for kind in TOKENIZERS if "bytes" in kind]), a_form)
def test_the_text_can_be_read_back(trajectory: Trajectory, kind: str, form: StepFormat) -> None:
    encoded = JoinedEncoder(segments(kind), form).encode(trajectory)
    steps = [step.strip() for step in trajectory.steps]
    prefixes = [form.step_prefix.replace("{k}", str(k)) for k in range(1, len(steps) + 1)]
    said = form.between.join(
        ("" if step.startswith("Step") else prefix) + step + form.separator
        for prefix, step in zip(prefixes, steps, strict=True)
    )
    begin = "<s>" if "bos" in kind else ""
    assert text_of(kind, encoded) == begin + form.opening + trajectory.question.strip() + form.after_question + said


@checked
@given(trajectories, a_kind, a_form)
def test_stray_marks_are_the_tokens_that_are_no_ends(trajectory: Trajectory, kind: str, form: StepFormat) -> None:
    encoder = JoinedEncoder(segments(kind), form)
    encoded = encoder.encode(trajectory)
    mark = encoder.separator_ids[-1]
    elsewhere = set(range(len(encoded))) - set(encoded.ends)
    assert encoder.stray_marks(encoded) == sum(encoded.ids[place] == mark for place in elsewhere)


# --- what others find -----------------------------------------------------------------------------------------------


def test_a_blank_line_inside_a_question_or_a_step_is_a_stray_mark() -> None:
    encoder = JoinedEncoder(segments("bytes, merges"))
    inside = Trajectory("One.\n\nTwo\n\nQ", ("a\n\nb", "c"))  # the first merges with its full stop, which is no mark
    assert encoder.stray_marks(encoder.encode(inside)) == 2
    assert encoder.stray_marks(encoder.encode(Trajectory("Q", ("a.", "b\nc")))) == 0


def test_a_separator_of_several_like_tokens_marks_more_than_its_end() -> None:
    """Two line breaks a step, and one behind the question: five marks of which two are ends."""
    encoder = JoinedEncoder(segments("bytes"))
    assert encoder.stray_marks(encoder.encode(Trajectory("Q", ("a", "b")))) == 3


@pytest.mark.parametrize(
    ("kind", "separator", "merges"),
    [
        ("bytes", "\n\n", False),
        ("bytes, merges", "\n\n", True),  # with the full stop before it
        ("bytes, merges", "\n", False),
        ("bytes, merges", ".\n\n", False),
        ("metaspace", "\n\n", False),
    ],
)
def test_whether_a_separator_merges_with_what_stands_beside_it(kind: str, separator: str, merges: bool) -> None:
    assert JoinedEncoder(segments(kind), StepFormat(separator=separator)).merges is merges


# --- separators that do not do --------------------------------------------------------------------------------------


def test_an_empty_separator_is_refused() -> None:
    says = refusal(lambda: StepFormat(separator=""))
    assert says == "the separator of steps is empty; name one, for example a blank line"


@pytest.mark.parametrize("separator", ["ки", "\t", "\n\té"])
def test_a_separator_with_unknown_letters_is_refused(separator: str) -> None:
    says = refusal(lambda: JoinedEncoder(segments("metaspace"), StepFormat(separator=separator)))
    assert says.startswith(f"this tokenizer reads the separator {separator!r} as '")
    assert "<unk>" in says
    assert says.endswith("; choose another with --separator")


def test_a_separator_that_the_tokenizer_drops_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    says = refusal(lambda: JoinedEncoder(SegmentTokenizer(tokenizer)))
    assert says == r"this tokenizer reads the separator '\n\n' as ''; choose another with --separator"
    assert JoinedEncoder(SegmentTokenizer(tokenizer), StepFormat(separator="+")).separator_ids == bytes_of("+")


def test_a_separator_that_the_tokenizer_changes_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    says = refusal(lambda: JoinedEncoder(SegmentTokenizer(tokenizer), StepFormat(separator="END")))
    assert says == "this tokenizer reads the separator 'END' as 'end'; choose another with --separator"


# --- dialogs --------------------------------------------------------------------------------------------------------

TURNS = "{% for m in messages %}<{{m.role}}>{{m.content}}</>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<assistant>{% endif %}"


def dialog(template: str | None, *, bos: bool = False) -> DialogEncoder:
    tokenizer = byte_tokenizer(bos=bos)
    tokenizer.chat_template = template
    return DialogEncoder(SegmentTokenizer(tokenizer))


def test_a_dialog_is_the_conversation_up_to_the_last_answer() -> None:
    """The question comes with the first step; a score is read where the model is about to say ``+``."""
    encoded = dialog(TURNS + ANSWER).encode(Trajectory("Q?", ("one", "two", "three")))
    first = "<user>Q? one</><assistant>"
    second = first + "+</><user>two</><assistant>"
    third = second + "+</><user>three</><assistant>"
    assert encoded.ids == bytes_of(third)
    assert encoded.ends == (len(first) - 1, len(second) - 1, len(third) - 1)


@pytest.mark.parametrize("bos", [False, True])
def test_the_first_token_is_what_the_template_says(bos: bool) -> None:
    """The text of a conversation has it already; it must not come twice, whatever the tokenizer adds by itself."""
    encoded = dialog("{{ bos_token }}" + TURNS + ANSWER, bos=bos).encode(Trajectory("Q?", ("one",)))
    assert encoded.ids == (BEGIN, *bytes_of("<user>Q? one</><assistant>"))


@checked
@given(trajectories)
def test_a_dialog_has_the_tokens_of_the_whole_conversation(trajectory: Trajectory) -> None:
    """And the first steps of it are a prefix, as above."""
    encoder = dialog(TURNS + ANSWER)
    encoded = encoder.encode(trajectory)
    assert len(encoded.ends) == len(trajectory.steps)
    text = ""
    for number, (step, end) in enumerate(zip(trajectory.steps, encoded.ends, strict=True)):
        said = step if number else f"{trajectory.question} {step}"
        text += ("+</>" if number else "") + f"<user>{said}</><assistant>"
        assert encoded.ids[: end + 1] == segments("bytes").encode(text, first=True)
        some = encoder.encode(Trajectory(trajectory.question, trajectory.steps[: number + 1]))
        assert encoded.first_steps(number + 1) == some
    assert len(encoded) == (encoded.ends[-1] + 1 if encoded.ends else 0)


@pytest.mark.parametrize(
    "template",
    [
        "<{{ messages | length }} turns>" + TURNS + ANSWER,
        "{% for m in messages %}{% if loop.last %}<now>{% endif %}{{m.content}}</>{% endfor %}" + ANSWER,
        TURNS + "{% if add_generation_prompt %}<assistant><think>{% endif %}",  # not there in turns that are past
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str) -> None:
    encoder = dialog(template)
    says = refusal(lambda: encoder.encode(Trajectory("Q?", ("one", "two"))))
    assert says == "this model's chat template rewrites earlier turns, so steps cannot be read from it"
    assert len(encoder.encode(Trajectory("Q?", ("one",))).ends) == 1  # nothing is earlier


def test_a_model_without_a_chat_template_is_refused() -> None:
    says = refusal(lambda: dialog(None).encode(Trajectory("Q?", ("one",))))
    assert says == "this model has no chat template, which its way of scoring steps needs"


@pytest.mark.parametrize("prefix", ["{n} ", "{", "{} {}"])
def test_a_prefix_with_another_field_is_refused_when_it_is_made(prefix: str) -> None:
    with pytest.raises(InputError, match=r"may hold \{k\} and no other field"):
        StepFormat(step_prefix=prefix)
