"""Candidate sets: several solutions of each question, to choose the best of (best-of-N, majority voting).

Every candidate is one trajectory. Those of one question carry the same tag ``question_id``, and the id
``question_id/i``, where i counts the candidates of the row from 0, those that are skipped included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from cpmi.errors import InputError
from cpmi.records import Trajectory
from cpmi.sources.reader import Context, Made
from cpmi.sources.rows import Row, answer_text, at_place, float_of, typed
from cpmi.steps import split_steps

# --- ZeroEval -------------------------------------------------------------------------------------------------------


def zeroeval(row: Row, context: Context) -> Iterator[Trajectory]:
    """A pool made of ZeroEval's results (WildEval/ZeroEval, ``result_dirs``): an answer of each of several models.

    The models were asked for ``{"reasoning": ..., "answer": ...}``. The steps are those of the reasoning, see
    ``reasoning_in``; where it is one paragraph, its sentences. ``answer`` is null where the pool's maker found none.
    """
    question, identity, gold = row.text("question"), row.text("id"), row.answer("gold_answer")
    candidates = typed(row.get("candidates"), list, "candidates", "a list of objects")
    if not candidates:
        context.tally.skip("no candidates", row.place)
    for i, values in enumerate(candidates):
        candidate = Row.of(row.place, values)
        text, what = reasoning_in(candidate.text("output"))
        if not (steps := _steps_or_sentences(text)):
            context.tally.skip("a candidate without any reasoning", row.place)
            continue
        if what:
            context.tally.note(what, row.place)
        yield Trajectory(
            question=question,
            steps=steps,
            gold_answer=gold,
            final_answer=candidate.answer("answer"),
            tags=context.tags(
                subset=context.stem, question_id=identity, generator=_text_or_none(candidate, "generator")
            ),
            id=f"{identity}/{i}",
        )


def _text_or_none(row: Row, name: str) -> str | None:
    value = row.or_none(name)
    return None if value is None else str(typed(value, str, name, "a text"))


def _steps_or_sentences(text: str) -> tuple[str, ...]:
    steps = split_steps(text)
    return split_steps(text, "sentences") if len(steps) == 1 else steps


WHOLE = "candidates without a field 'reasoning', taken whole"
BROKEN = "candidates in broken JSON (line breaks, backslashes or quotes as they are), read all the same"
BEFORE = "candidates that reasoned before their JSON and only sum up in it, taken from there"
FIELDS = "candidates whose reasoning goes on in fields of its own, joined as lines"

_REASONING = re.compile(r"\"reasoning\"\s*:\s*[\"\u201c]")
# Before the field: the opening of its object, and a line that announces it ("Here is the answer in JSON:").
_OBJECT_OPENS = re.compile(r"\s*(?:`{3,}\s*(?:json)?)?\s*\{?\s*\Z", re.IGNORECASE)
_ANNOUNCED = re.compile(r"(?:\A|\n)[^\n]*:\s*\Z")
_ANSWER = re.compile(r"(?:\n\s*Answer\s*:\s*)?\"answer\"\s*:")
# What ends an object whose text was closed, or was not, before the model began its object anew. Fences are taken
# possessively: there is one way to tell them apart, and to try others would take exponential time.
_CLOSE = re.compile(
    r"(?:(?:(?<!\\)\"|\u201d)[\s,}\]]*)?\s*(?:(?:\n\s*\}\s*)?(?:`{3,}+\s*+(?:json)?+[\s{]*+)++)?\Z", re.IGNORECASE
)
_JOINED = re.compile(r"(?<!\\)\"\s*\+\s*\"")  # "one text" + "the next", as in a program
_NEXT_FIELD = re.compile(r"(?<!\\)\"\s*,\s*\"(?P<name>[^\"\\\n:]{1,60})\"\s*:\s*\"")
_END_OF_TEXT = re.compile(r"(?:\s*(?:</s>|<\|[a-z_]+\|>))+\s*\Z")


def reasoning_in(output: str) -> tuple[str, str | None]:
    r"""The text of the field ``reasoning`` in what a model wrote when asked for JSON.

    Models put prose and fences around the object, break lines inside texts, and forget to escape quotes, backslashes,
    or to close what they opened. So the text goes from its opening quote to the field ``answer``, or as far as there
    is any; escapes are undone as ``_unescaped`` says. Some models reason first, in prose, and sum it up in the field:
    where the prose before the object is the longer text, it is the reasoning.

    Returns:
        The text, and what was done where the output was not simply read as JSON. The whole output where there is no
        such field.
    """
    opened = _REASONING.search(output)
    if opened is None:
        return _END_OF_TEXT.sub("", output), WHOLE
    rest = _END_OF_TEXT.sub("", output[opened.end() :])
    ends = [match.start() for pattern in (_ANSWER, _REASONING) if (match := pattern.search(rest))]
    raw = rest[: min(ends)] if ends else rest
    raw = _without_end(_CLOSE, raw)
    text, fields = _NEXT_FIELD.subn(r"\n\g<name>: ", _JOINED.sub("\n", raw))
    text = _unescaped(text)
    before = _without_end(_ANNOUNCED, _without_end(_OBJECT_OPENS, output[: opened.start()])).strip()
    if len(before) > len(text):
        return before, BEFORE
    if fields:
        return text, FIELDS
    return text, None if text == _read_as_json(output, opened.end() - 1) else BROKEN


_END = 300  # characters in which an end is looked for: a run of spaces takes cubic time


def _without_end(pattern: re.Pattern[str], text: str) -> str:
    """The text without the end that the pattern finds."""
    found = pattern.search(text, max(0, len(text) - _END))
    return text[: found.start()] if found else text


def _read_as_json(output: str, start: int) -> str | None:
    """The text that opens there, if it is one by the letter of the format."""
    try:
        text, end = json.JSONDecoder().raw_decode(output, start)
    except (ValueError, RecursionError):
        return None
    return str(text) if re.match(r"\s*,\s*\"answer\"\s*:", output[end:]) else None


# --- escapes --------------------------------------------------------------------------------------------------------

# Commands of LaTeX that begin as an escape of a line break does. Those that begin as \t, \r, \b and \f do are told by
# their two letters or more: nobody breaks a line, or rings a bell, in the midst of a word.
_COMMAND_N = r"n(?:eq|eg|ot|otin|abla|leq|geq|mid|sim|less|gtr|cong|parallel|onumber|ewline|orm|ormalsize|subseteq)"
_ESCAPE = re.compile(
    r"(?P<row>\\{4})"
    r"|(?P<pair>\\\\)"
    rf"|\\(?P<command>{_COMMAND_N}(?![A-Za-z])|[trbf][a-z]+[A-Za-z]*)"
    r"|\\(?P<either>n[eiu])(?![A-Za-z])"  # \ne, \ni, \nu; or a line that begins with a variable
    r"|(?P<code>(?:\\u[0-9a-fA-F]{4})+)"
    r"|\\(?P<letter>[ntr\"'/])"
)
# What stands behind two backslashes that were meant to be one, and not a line break of LaTeX ("\\\\ x", "\\\\[2pt]").
_AFTER_ONE = re.compile(r"[A-Za-z]{2}|[(){}\],;:!%$_#]|\[(?!-?[\d.]+ ?(?:pt|em|ex|cm|mm|in)\])")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "/": "/"}
# A backslash that stands alone where JSON has two shows that the text was not escaped at all.
_BARE = re.compile(rf"(?<!\\)(?:\\\\)*\\(?:{_COMMAND_N}(?![A-Za-z])|[trbf][a-z]+|[^\\\"/bfnrtu'])")


def _unescaped(text: str) -> str:
    r"""Undo the escapes of a JSON text whose writer may not have escaped LaTeX: ``\\frac`` and ``\frac`` both mean
    ``\frac``, never a form feed and "rac".

    In a text that has a bare backslash somewhere, two backslashes are LaTeX's line break, but not before a command, and
    the short commands ``\ne``, ``\ni``, ``\nu`` are commands; elsewhere a line break stands before that letter.
    """
    bare = _BARE.search(text) is not None

    def plain(match: re.Match[str]) -> str:
        if match["row"]:
            return "\\\\"
        if match["pair"]:
            return "\\\\" if bare and not _AFTER_ONE.match(text, match.end()) else "\\"
        if match["either"]:
            return match[0] if bare else "\n" + match["either"][1:]
        if match["code"]:
            return _code_points(match["code"])
        return _LETTERS[match["letter"]] if match["letter"] else match[0]

    return _ESCAPE.sub(plain, text)


def _code_points(escapes: str) -> str:
    r"""The characters of ``\u`` escapes; half of a surrogate pair is no character and stays as it is spelled."""
    text = str(json.loads(f'"{escapes}"'))
    return "".join(f"\\u{ord(each):04x}" if "\ud800" <= each <= "\udfff" else each for each in text)


# --- GSM8K ----------------------------------------------------------------------------------------------------------

GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
_CALCULATION = re.compile(r"<<[^<>\n]*(?:>>|\Z)")
_FINAL_LINE = re.compile(r"A:\s*(?P<answer>\S.*)")


def gsm8k_solutions(rows: Iterator[Row], context: Context) -> Made:
    """The example solutions of GSM8K (arXiv 2110.14168, openai/grade-school-math): four models, one each per question.

    A step is a line, without the calculator's annotations (``<<16-3=13>>``); the last one (``A: 26``) states the
    answer. Rows have no ids: ``question_id`` is the file's name and the row's number from 0.
    """
    for number, row in enumerate(rows):
        with at_place(row.place):
            made = [_gsm8k_solution(row, context, f"{context.stem}/{number}", i) for i in range(len(GENERATORS))]
        yield from ((row.place, trajectory) for trajectory in made)


def _gsm8k_solution(row: Row, context: Context, question_id: str, i: int) -> Trajectory:
    question, truth, generator = row.text("question"), row.text("ground_truth"), GENERATORS[i]
    text, correct = row.text(f"{generator}.solution"), row.get(f"{generator}.is_correct")
    lines = (line.strip() for line in _CALCULATION.sub("", text).splitlines())
    steps = tuple(line for line in lines if line)
    stated = _FINAL_LINE.fullmatch(steps[-1]) if steps else None
    if steps and stated is None:
        context.tally.note("solutions without a last line 'A: ...'", row.place)
    gold = _FINAL_LINE.fullmatch(truth.rstrip().rpartition("\n")[2].strip())
    if gold is None:
        raise InputError("field 'ground_truth' must end in a line 'A: ...'")
    return Trajectory(
        question=question,
        steps=steps,
        gold_answer=gold["answer"],
        final_answer=stated["answer"] if stated else None,
        tags=context.tags(
            subset=context.stem,
            question_id=question_id,
            generator=generator,
            final_answer_correct=_bool(correct, f"{generator}.is_correct"),
        ),
        id=f"{question_id}/{i}",
    )


def _bool(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"field {name!r} must be true or false, found {type(value).__name__}")
    return value


# --- Qwen2.5-Math ---------------------------------------------------------------------------------------------------


def qwen_eval(row: Row, context: Context) -> Iterator[Trajectory]:
    """What Qwen2.5-Math's evaluation writes (QwenLM/Qwen2.5-Math, ``evaluation/data/eval_rm_maj_example``): samples of
    one model with its grader's verdicts and, where a reward model scored them, ``pred_score``, kept as ``reward``.

    ``idx`` numbers the rows of each file, so that ``question_id`` has the file's name before it.
    """
    question, gold = row.text("question"), row.answer("gt")
    question_id = f"{context.stem}/{typed(row.get('idx'), str | int | float, 'idx', 'a text or a number')}"
    solutions = row.texts("code")
    if not solutions:
        context.tally.skip("no solutions", row.place)
    answers, verdicts = (_per_solution(row, name, len(solutions)) for name in ("pred", "score"))
    rewards = (
        _per_solution(row, "pred_score", len(solutions)) if "pred_score" in row.values else (None,) * len(solutions)
    )
    for i, (solution, answer, verdict, reward) in enumerate(zip(solutions, answers, verdicts, rewards, strict=True)):
        yield Trajectory(
            question=question,
            steps=split_steps(solution),
            gold_answer=gold,
            final_answer=answer_text(answer, "pred"),
            tags=context.tags(
                subset=context.stem,
                question_id=question_id,
                final_answer_correct=_bool(verdict, "score"),
                reward=_number(reward),
            ),
            id=f"{question_id}/{i}",
        )


def _per_solution(row: Row, name: str, count: int) -> tuple[object, ...]:
    values = typed(row.get(name), list, name, "a list")
    if len(values) != count:
        raise InputError(f"field {name!r} has {len(values)} entries for {count} solutions")
    return tuple(values)


def _number(value: object) -> float | None:
    """A score, bare or as a list of one, as some reward models give it."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return None if value is None else float_of(value, "pred_score", "a number for each solution")
