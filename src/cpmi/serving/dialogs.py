"""What trainers send, prompts and answers in the markup of chat templates, as a question and a solution.

Trainers send text in which a template has been filled in. A reward model of steps was trained on questions and
solutions, so the markup has to go again.
"""

from __future__ import annotations

import re

from cpmi.errors import InputError

# What opens a turn, in the templates in use: ChatML (Qwen and others), Llama 3, Gemma, Phi and Zephyr, DeepSeek,
# Mistral and Llama 2.
_TURN = re.compile(
    r"<\|im_start\|>[ \t]*(?P<chatml>\w+)[ \t]*\n"
    r"|<\|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>"
    r"|<start_of_turn>(?P<gemma>\w+)[ \t]*\n"
    r"|<\|(?P<phi>system|user|assistant)\|>"
    r"|<\uff5c(?P<deepseek>User|Assistant)\uff5c>"
    r"|\[(?P<mistral>/?INST)\]"
)
_ROLES = {"model": "assistant", "/inst": "assistant", "inst": "user"}
# Ends of turns and texts, and padding: markup at the ends of a piece; what stands inside is the text's own.
_MARK = r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|</?s>|<eos>|<bos>|<pad>|<end_of_turn>|\[PAD\]"
_FRONT = re.compile(rf"\A(?:\s*(?:{_MARK}))+")
_BACK = re.compile(rf"(?:{_MARK})\Z")


def without_marks(text: str) -> str:
    """The text without the marks and the white space at its ends."""
    text = _FRONT.sub("", text).strip()
    while match := _BACK.search(text, max(0, len(text) - 50)):  # one by one: a pattern for all of them would backtrack
        text = text[: match.start()].rstrip()
    return text


def turns(text: str) -> list[tuple[str, str]]:
    """The turns of a dialog, each a role and a text; none where no known template is recognized."""
    openings = list(_TURN.finditer(text))
    ends = [opening.start() for opening in openings[1:]] + [len(text)]
    found = []
    for opening, end in zip(openings, ends, strict=False):  # where nothing opens, the end of the text ends nothing
        role = next(group for group in opening.groups() if group).lower()
        found.append((_ROLES.get(role, role), without_marks(text[opening.end() : end])))
    return found


def question_of(prompt: str) -> str:
    """What the user asks last in a prompt; a prompt without markup is the question itself."""
    asked = [text for role, text in turns(prompt) if role == "user"]
    return asked[-1] if asked else without_marks(prompt)


def question_and_solution(text: str, prompt: str | None = None) -> tuple[str, str]:
    """A whole text as a question and a solution.

    Args:
        text: a prompt and what a model said to it.
        prompt: the prompt, where it is known: then all that follows is the solution, whatever it looks like. Without
            it, the last turn of the assistant is.

    Raises:
        InputError: neither is the prompt in the text nor a template recognized.
    """
    if prompt and prompt in text:
        return question_of(prompt), without_marks(text.partition(prompt)[2])
    said = turns(text)
    if len(said) >= 2 and (said[-2][0], said[-1][0]) == ("user", "assistant"):
        return said[-2][1], said[-1][1]
    if prompt:
        raise InputError("the text does not hold its prompt, and no chat template of a user and an assistant")
    raise InputError(
        "no chat template of a user and an assistant recognized; send question and solution apart to /v1/score"
    )
