"""API keys: who may ask."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path

from cpmi.errors import InputError

VARIABLE = "CPMI_API_KEYS"


class Keys:
    """Keys that open a server, kept as digests alone."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Take these keys.

        Raises:
            InputError: none at all, or one that a header cannot carry.
        """
        keys = tuple(keys)
        if not keys:
            raise InputError("no API key given; a server without keys needs no option")
        for number, key in enumerate(keys, 1):
            if not (key.isascii() and key.isprintable()) or " " in key or not key:
                raise InputError(f"API key {number}: a key is printable ASCII without spaces")
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, authorization: bytes | None) -> bool:
        """Whether an ``Authorization`` header holds a key: ``Bearer KEY``, or ``Basic`` with the key as the password.

        Trainers that know a URL and no header can say ``http://any:KEY@host:port/``, which is the latter. The time it
        takes does not depend on how much of a key was right: digests are compared, and every one of them.
        """
        scheme, _, value = (authorization or b"").strip().partition(b" ")
        given = value.strip()
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        digest = _digest(given)
        return any([hmac.compare_digest(digest, each) for each in self._digests])  # noqa: C419 - all, whichever is right


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(file: Path | None, environment: Mapping[str, str]) -> Keys | None:
    """The keys of a file (one a line; empty lines and ``#`` are left out) and of ``CPMI_API_KEYS`` (commas between).

    None where neither is given. There is no option that takes a key itself: others on the machine can read a
    command line.

    Raises:
        InputError: one of them is given and holds no key, or a bad one, or the file cannot be read.
    """
    found: list[str] = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise InputError(f"{file}: {reason}; give a file with an API key on each line") from error
        found += [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise InputError(f"{file}: holds no API key; write one on a line")
    if VARIABLE in environment:
        more = [key.strip() for key in environment[VARIABLE].split(",") if key.strip()]
        if not more:
            raise InputError(f"{VARIABLE} is set and holds no key; unset it to serve without keys")
        found += more
    return Keys(found) if found else None
