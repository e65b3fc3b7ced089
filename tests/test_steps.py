"""Splitting one text into steps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpmi.errors import InputError
from cpmi.steps import _OPENING, _OPENING_IN_LINE, WAYS, _whole, split_steps
from fuzzing import bounded


def squeezed(text: str) -> str:
    return "".join(text.split())


# Pieces that the ways look for, in any order: headers, numbers, fences and formulas, closed or not.
HEADERS = ("Step 1: a", "step 2.", "**Step 3**", "### Step 4", "1. x", "2) y", "  3. z", "# Answer")
SPACES = ("\n", "\n\n", "\r\n", " ", "\t\n", "\x1c")
MARKS = ("```", "~~~", "\\[", "\\]", "$$", "\\begin{align}", "\\end{align}", "\\begin{align*}")
PIECES = st.sampled_from((*HEADERS, *SPACES, *MARKS))
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=25).map("".join)


@given(text=TEXTS, how=st.sampled_from(["auto", *WAYS]))
def test_no_content_is_lost_and_no_step_is_blank(text: str, how: str) -> None:
    steps = split_steps(text, how)
    assert squeezed("".join(steps)) == squeezed(text)
    assert all(step and step == step.strip() for step in steps)


@given(text=TEXTS)
def test_auto_is_the_first_way_that_finds_two_steps(text: str) -> None:
    found = [split_steps(text, way) for way in ("step-k", "blank-lines", "numbered", "lines")]
    assert split_steps(text) == next((steps for steps in found if len(steps) > 1), found[-1])


@pytest.mark.parametrize(
    "header",
    [
        "Step {}: a",
        "Step {}. a",
        "**Step {}**\na",
        "### Step {}\na",
        "STEP {} - a",
        "**Step {}: A.** a",
        "- Step {}) a",
    ],
)
def test_step_k_keeps_each_header_with_its_step(header: str) -> None:
    first, second = header.format(1), header.format(2)
    assert split_steps(f"{first}\n\nmore\n{second}") == (f"{first}\n\nmore", second)


def test_text_before_the_first_header_belongs_to_the_first_step() -> None:
    assert split_steps("Let's see.\n\nStep 1: a\nStep 2: b") == ("Let's see.\n\nStep 1: a", "Step 2: b")
    assert split_steps("Let's see.\n1. a\n2. b", "numbered") == ("Let's see.\n1. a", "2. b")


def test_a_sentence_about_a_step_opens_none() -> None:
    text = "Step 1: x = 2\nStep 2 shows that y = 3\nand Step 3: is not at the line's start"
    assert split_steps(text, "step-k") == (text,)


def test_one_header_alone_leaves_auto_to_the_blank_lines() -> None:
    assert split_steps("Step 1: a\n\nb") == ("Step 1: a", "b")


def test_blank_lines_may_hold_spaces_and_carriage_returns() -> None:
    assert split_steps("a\nb\n \t\nc\r\n\r\nd\n\n\n\n", "blank-lines") == ("a\nb", "c", "d")


def test_numbered_counts_up_by_one_and_skips_lists_inside() -> None:
    text = "1. first\n   1. inner\n   2. inner\n1.5 is a number\n2) second\n2. again\n2026. a year\n**3.** third"
    assert split_steps(text, "numbered") == (
        "1. first\n   1. inner\n   2. inner\n1.5 is a number",
        "2) second\n2. again\n2026. a year",
        "**3.** third",
    )


def test_numbered_that_does_not_start_at_one_is_not_a_numbering() -> None:
    assert split_steps("2. a\n3. b", "numbered") == ("2. a\n3. b",)


def test_auto_takes_numbers_before_lines() -> None:
    assert split_steps("1. a\nb\n2. c") == ("1. a\nb", "2. c")
    assert split_steps("a\nb\nc") == ("a", "b", "c")


@pytest.mark.parametrize(
    "whole",
    [
        "\\[\nx = 1\n\ny = 2\n\\]",
        "$$\nx\n\n= 1\n$$",
        "\\begin{align*}\na &= b\n\n&= c\n\\end{align*}",
        "```python\nStep 1: x\n\nStep 2: y\n1. z\n2. z\n```",
    ],
)
@pytest.mark.parametrize("how", ["auto", "blank-lines", "lines"])
def test_formulas_and_code_stay_whole(whole: str, how: str) -> None:
    assert split_steps(f"so\n\n{whole}\n\nthen", how) == ("so", whole, "then")
    assert split_steps(whole, how) == (whole,)


def test_an_opening_without_its_end_protects_nothing() -> None:
    assert split_steps("a \\[ b\n\nc $$ d\n\n```\n\ne") == ("a \\[ b", "c $$ d", "```", "e")


WHOLE = (
    r"^[ \t]*(?P<fence>`{3,}|~{3,})(?s:.*?)^[ \t]*(?P=fence)"
    r"|(?<!\\)\\\[(?s:.*?)\\\]"
    r"|(?<!\\)\$\$(?s:.*?)\$\$"
    r"|\\begin\{(?P<name>[A-Za-z]+\*?)\}(?s:.*?)\\end\{(?P=name)\}"
)
WHOLE_IN_LINE = WHOLE + (
    r"|(?<!\\)\\\((?s:.*?)\\\)|(?<![\\$])\$(?![\s$])(?:\\.|[^$\\\n])+(?<!\s)\$(?![0-9$])|`[^`\n]+`"
)
EDGES = ("```", "````", "`", "~~~", "~~~~~", "\\[", "\\]", "\\(", "\\)", "$$", "$", "\\", "\n", " ", "x", "1")
NAMED = ("\\begin{a}", "\\end{a}", "\\begin{b*}", "\\end{b*}", "\\end{b}", "\\begin{")


@given(text=st.lists(st.sampled_from((*EDGES, *NAMED)), max_size=40).map("".join))
def test_what_stays_whole_is_what_a_pattern_of_quadratic_time_finds(text: str) -> None:
    for opening, pattern in ((_OPENING, WHOLE), (_OPENING_IN_LINE, WHOLE_IN_LINE)):
        assert _whole(text, opening) == [match.span() for match in re.finditer(pattern, text, re.MULTILINE)]


MARKS_OF_WHOLES = (
    "`",
    "``` ",
    "```\n",
    "`````\n~~~\n",
    "~",
    "$",
    "$$ ",
    "$a$ ",
    "\\$",
    "\\[",
    "\\(",
    "\\begin{a}",
    "\\begin{a",
)
MARKS_OF_ENDS = (
    " ",
    "\t",
    "\n",
    "\n ",
    "\\n",
    "Step 1:",
    "step ",
    "Step 1: a\n",
    "1. ",
    "A. B ",
    "! ",
    "[",
    "- ",
    "#",
    "\u2028",
)


@pytest.mark.parametrize("fragment", [*MARKS_OF_WHOLES, *MARKS_OF_ENDS])
def test_hostile_texts_take_linear_time(fragment: str) -> None:
    """A few hundredths of a second each; with one quadratic pattern it is minutes."""
    text = fragment * (200_000 // len(fragment))
    for how in ("auto", *WAYS):
        for padded in (text, f"Step 1: a\n{text}\nb"):
            with bounded(3):
                split_steps(padded, how)


def test_environments_of_many_names_and_fences_of_many_lengths_take_linear_time() -> None:
    names = ("".join(chr(97 + number // 26**place % 26) for place in range(4)) for number in range(17_000))
    environments = "".join(f"\\begin{{{name}}}" for name in names)
    fences = "".join("`" * length + "\n" for length in (*range(3, 600), *range(600, 3, -1)))
    for how in ("auto", *WAYS):
        with bounded(3):
            assert split_steps(environments, how) == (environments,)
            split_steps(fences, how)


def test_a_line_break_in_a_matrix_is_no_formula() -> None:
    assert split_steps("a \\\\[2pt]\n\nb \\]", "blank-lines") == ("a \\\\[2pt]", "b \\]")


@pytest.mark.parametrize("how", ["auto", *WAYS])
def test_edge_texts(how: str) -> None:
    assert split_steps("", how) == ()
    assert split_steps(" \n\t\n", how) == ()
    assert split_steps(" one ", how) == ("one",)


def test_an_unknown_way_is_named_with_its_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown way to split steps 'line'; did you mean 'lines'\?"):
        split_steps("a", "line")


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ("She has 3.5 cups.", "Then 3.5 + .5 = 4.", "So 4 are left!", "Are they?", "Yes."),
        ("It costs $5.", "Then $7 more make $12.", "$12 / 2 = $6."),
        ("We get x = 1.", "\\(x\\) is odd.", "$x$ is small.", "\\frac{1}{x} is 1."),
        ('He said "Stop."', "(See above.)", "Then (all at once.)", "**Then** he left."),
        ("1. Add both.", "2. Halve it."),
        ("Step 1. Add both.", "Step 2. Halve it."),
        ("The total is 18.", "5 of them are red."),
        ("Élan is French.", "Ärger is German.", "“So it is.”", "Done."),
    ],
)
def test_sentences_are_cut_behind_their_marks(sentences: tuple[str, ...]) -> None:
    assert split_steps(" ".join(sentences), "sentences") == sentences
    assert split_steps("  \n".join(sentences), "sentences") == sentences


@pytest.mark.parametrize(
    "whole",
    [
        "Take small numbers, e.g. 5 or 6, i.e. Few of them, vs. Many",
        "Mr. Smith and Dr. Jones of the U.S. Navy met at 5 p.m. Monday by Fig. 3 and Eq. 4",
        "He gives J. Smith of St. Mary No. 5 of approx. 12 ft. 3 in. Wide",
        "Let $f(x) = 1. And$ then \\(y. Then\\) and `a. B` hold",
        "so \\[ x. Then \\] and $$ y! Z $$ and \\begin{cases} a. B \\end{cases}",
        "and so on ... The end is near.. But not here",
        "it is 3.14 and x. then y? no",
    ],
)
def test_no_sentence_is_cut_where_its_end_is_not_sure(whole: str) -> None:
    assert split_steps(whole, "sentences") == (whole,)


def test_auto_does_not_cut_sentences() -> None:
    assert split_steps("One. Two.") == ("One. Two.",)
