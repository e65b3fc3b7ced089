"""Text to tokens and back, segment by segment, with the tokenizers of Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cpmi.errors import InputError


class SegmentTokenizer:
    """Tokenizes a piece of a text as it stands inside the text, and decodes what continues one.

    A tokenizer that puts a space before every text (SentencePiece's dummy prefix) would put one into the middle of
    the sequence, and take one off what was sampled there. Such a one works behind a line break, the ``anchor``, which
    is then taken off.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix = _opening(tokenizer)
        self._anchor = self._find_anchor()

    def encode(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Token ids of a segment, no special tokens; ``first``: it opens the sequence."""
        if self._anchor and not first:
            ids = self._ids("\n" + text)
            if ids[: len(self._anchor)] == self._anchor:
                return ids[len(self._anchor) :]
        return self._ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens that continue a sequence, special ones left out."""
        before = self._text(self._anchor)
        return self._text([*self._anchor, *ids])[len(before) :]

    def dialog(self, request: str, reply: str) -> str:
        """See ``Sampler.dialog``. The text does not begin with the tokens of ``prefix``, which open every sequence.

        Raises:
            InputError: the tokenizer has no chat template.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError("this model has no chat template; use plain prompts")
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
        )
        opening = self._tokenizer.decode(self.prefix)
        return text.removeprefix(opening) + reply

    @property
    def begin(self) -> tuple[int, ...]:
        """The token that begins a sequence, if there is one, whether or not the tokenizer itself puts it there."""
        token = self._tokenizer.bos_token_id
        return () if token is None else (int(token),)

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """The whole text, with the tokens that open it, of a conversation up to where the model is to speak.

        Args:
            turns: of (role, content).

        Raises:
            InputError: the tokenizer has no chat template.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError("this model has no chat template, which its way of scoring steps needs")
        said = [{"role": role, "content": content} for role, content in turns]
        text: str = self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return text

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that continue a sequence, special ones too."""
        before, after = (
            self._tokenizer.decode([*self._anchor, *more], clean_up_tokenization_spaces=False) for more in ((), ids)
        )
        return str(after[len(before) :])

    def pad_token(self) -> int:
        """A token to fill up with; what it is does not matter, so that a tokenizer without one will do."""
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        return int(pad if pad is not None else end if end is not None else 0)

    def _ids(self, text: str) -> tuple[int, ...]:
        # Half of a surrogate pair, which JSON can hold, is no character: tokenizers refuse the whole text.
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return tuple(self._tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _find_anchor(self) -> tuple[int, ...]:
        """The line break to work behind, or nothing where a segment is read alike alone and behind one."""
        plain, line, both = self._ids("a"), self._ids("\n"), self._ids("\na")
        return () if both == line + plain else line


def _opening(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens the tokenizer itself opens a sequence with."""
    plain, full = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return tuple(full[:at])
