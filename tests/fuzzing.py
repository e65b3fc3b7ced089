"""Damaged files, made of good ones: what ``test_fuzz`` feeds to the readers.

A file is a JSON value, spelled as lines, as one value or as Parquet. It is damaged in its structure before it is
spelled, in its bytes after it, and in the bytes of its packing. A ``Damage`` is three small values, so that hypothesis
can shrink what fails to the one damage that matters, and print it.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from cpmi.errors import CpmiError

SECONDS = 10.0  # of computing that the reading of a file may take: the files are small, so that this is a hang
LONG = 20_000  # characters of a text that is made long; at this length what takes quadratic time is seen

T = TypeVar("T")


class Raw(str):
    """JSON as it is to be spelled: what ``json`` would never write."""

    __slots__ = ()


class Damage(NamedTuple):
    """One thing done to a file.

    Attributes:
        kind: a name in ``STRUCTURE`` or ``BYTES``.
        at: chooses the place.
        what: chooses what is done there.
    """

    kind: str
    at: int
    what: int


class Damages(NamedTuple):
    """All that is done to a file, in this order."""

    structure: list[Damage]
    text: list[Damage]
    packed: list[Damage]


# --- spelling -------------------------------------------------------------------------------------------------------


def spell(value: Any) -> str:
    """A value as JSON text, with the raw parts as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}: {spell(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(spell, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_damaged(path: Path, seed: Any, damages: Damages) -> None:
    """Write a damaged file; the name decides how it is spelled.

    Args:
        seed: a JSON value; a list of rows for JSON lines and Parquet.
    """
    names = path.suffixes[-2:]
    has_rows = ".json" not in names
    value = copy.deepcopy(seed)
    for damage in damages.structure:
        value = STRUCTURE[damage.kind](value, damage.at, damage.what)
        if has_rows and not isinstance(value, list):
            value = [value]
    if ".parquet" in names:
        data = _parquet(value, damages.text, path)
    else:
        text = "".join(f"{spell(row)}\n" for row in value) if has_rows else spell(value)
        data = _damaged(text.encode("utf-8", "surrogatepass"), damages.text)
        data = gzip.compress(data, mtime=0) if ".gz" in names else data
    path.write_bytes(_damaged(data, damages.packed))


def _damaged(data: bytes, damages: list[Damage]) -> bytes:
    for damage in damages:
        data = BYTES[damage.kind](data, damage.at, damage.what)
    return data


# --- structure ------------------------------------------------------------------------------------------------------

# As a file has it: a number that no float holds, halves of surrogate pairs, what is nested past any limit...
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, 1.0, -0.0, 1e308),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e400"), Raw("1e-400"), Raw("9" * 400)),
    *(Raw("9" * 4300), Raw("-" + "9" * 4300), Raw("9" * 4301), Raw("01"), Raw("'a'"), Raw("")),
    *(
        "",
        " ",
        "\n\t",
        "a\nb",
        "a\r\nb\u2028c",
        "\x00",
        "\ufeff",
        "\U0001f40d",
        "1",
        "0",
        "-1",
        "N/A",
        "1/0",
        "{answer}",
    ),
    *(Raw(r'"\ud83d"'), Raw(r'"\udc0d\ud83d"'), Raw(r'"\ud83d\udc0d"'), Raw('"\\x"'), Raw('"a\tb"'), Raw('"open')),
    *([], {}, [[]], [None], [[[]]], [[1], ["a"]], [""], ["a", "a"], ["a", 1], [True], [0.5, None], {"": None}),
    *({"a\nb": 1}, {"a": {"a": {"a": []}}}, [{}], [{"text": None}], [1, 2, 3, 4, 5, 6, 7, 8]),
    *(Raw(opened * depth + closed * depth) for opened, closed in (("[", "]"), ('{"a":', "}")) for depth in (150, 400)),
    *(Raw("[" * depth + "]" * depth) for depth in (700, 850, 950, 100_000)),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in (850, 100_000)),
    *(Raw('["x",' + "[" * 400 + "]" * 400 + "]"),),
)

# Made long, each of these has been somebody's catastrophic regular expression.
_FRAGMENTS = (
    *(
        " ",
        "\n",
        "\t",
        " \n",
        "x",
        "1",
        "1,",
        "-",
        "_",
        ".",
        "a. B",
        "\\",
        "\\\\",
        '"',
        '\\"',
        "'",
        "`",
        "```\n",
        "~~~",
    ),
    *("$", "$$", "$a$ ", "\\[", "\\(", "\\begin{a}", "\\boxed{", "{", "}", "(", "((A)", "[", "<<", "####", "# "),
    *("Step 1: a\n", "1. a\n", "The answer is ", "The answer is: 1", "\nA: ", "ки", "+", '"reasoning": "', '"answer":'),
    *("\u2028", "\u00e9", "\U0001f40d", "\x00", "not ", "option "),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every ``(container, key)`` in a value, in the order of the text."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        here = waiting.pop()
        keys: list[Any] = (
            list(here) if isinstance(here, dict) else [*range(len(here))] if isinstance(here, list) else []
        )
        found += [(here, key) for key in keys]
        waiting += [here[key] for key in reversed(keys)]
    return found


def _choose(value: Any, at: int, kind: type = object) -> tuple[Any, Any] | None:
    """A place whose content is of a kind."""
    places = [(here, key) for here, key in _places(value) if isinstance(here[key], kind)]
    return places[at % len(places)] if places else None


def _replace(value: Any, at: int, what: int) -> Any:
    if place := _choose(value, at):
        place[0][place[1]] = copy.deepcopy(ODD[what % len(ODD)])
    return value


def _remove(value: Any, at: int, what: int) -> Any:
    if place := _choose(value, at):
        del place[0][place[1]]
    return value


def _exchange(value: Any, at: int, what: int) -> Any:
    """Put what stands at one place at another, too."""
    if (place := _choose(value, at)) and (other := _choose(value, what)):
        place[0][place[1]] = copy.deepcopy(other[0][other[1]])
    return value


def _wrap(value: Any, at: int, what: int) -> Any:
    if place := _choose(value, at):
        here = place[0][place[1]]
        place[0][place[1]] = ([here], [here, here], {"a": here}, [[here]], spell(here), [])[what % 6]
    return value


def _again(value: Any, at: int, what: int) -> Any:
    """An item of a list once more: a row, a step, a label."""
    if place := _choose(value, at, list):
        items = place[0][place[1]]
        items.insert(what % (len(items) + 1), copy.deepcopy(items[what % len(items)]) if items else None)
    return value


def _row_again(value: Any, at: int, what: int) -> Any:
    if isinstance(value, list) and value:
        value.insert(at % (len(value) + 1), copy.deepcopy(value[what % len(value)]))
    return value


def _key_twice(value: Any, at: int, what: int) -> Any:
    """A name twice in one object."""
    place = _choose(value, at)
    if place and isinstance(place[0], dict):
        here = place[0][place[1]]
        other = spell(ODD[what % len(ODD)]) or "null"
        place[0][place[1]] = Raw(f"{spell(here)}, {json.dumps(place[1])}: {other}")
    return value


def _rename(value: Any, at: int, what: int) -> Any:
    place = _choose(value, at)
    if place and isinstance(place[0], dict):
        name = place[1]
        names = ("", f" {name}", name.upper(), f"{name}\n", "a.b", "\ud83d", "\x00", "id", "question_id", "error")
        place[0][names[what % len(names)]] = place[0].pop(name)
    return value


def _add_key(value: Any, at: int, what: int) -> Any:
    names = ("", "a\nb", "\u2028", "steps", "label", "choices", "rating", "tags", "id", "extra", "answer", "error")
    if place := _choose(value, at, dict):
        place[0][place[1]][names[at % len(names)]] = copy.deepcopy(ODD[what % len(ODD)])
    return value


def _lengthen(value: Any, at: int, what: int) -> Any:
    """A long run of one fragment inside a text."""
    if (place := _choose(value, at, str)) and not isinstance(text := place[0][place[1]], Raw):
        fragment = _FRAGMENTS[what % len(_FRAGMENTS)]
        middle = (at + what) % (len(text) + 1)
        place[0][place[1]] = text[:middle] + fragment * (LONG // len(fragment)) + text[middle:]
    return value


def _insert(value: Any, at: int, what: int) -> Any:
    """A fragment inside a text."""
    if (place := _choose(value, at, str)) and not isinstance(text := place[0][place[1]], Raw):
        middle = (at * 7 + what) % (len(text) + 1)
        place[0][place[1]] = text[:middle] + _FRAGMENTS[what % len(_FRAGMENTS)] + text[middle:]
    return value


def _cut(value: Any, at: int, what: int) -> Any:
    if (place := _choose(value, at, str)) and not isinstance(text := place[0][place[1]], Raw):
        place[0][place[1]] = text[: what % (len(text) + 1)]
    return value


def _whole(value: Any, at: int, what: int) -> Any:
    """Something else altogether."""
    return copy.deepcopy(ODD[what % len(ODD)])


STRUCTURE: Mapping[str, Callable[[Any, int, int], Any]] = {
    "replace": _replace, "remove": _remove, "exchange": _exchange, "wrap": _wrap, "again": _again,
    "row again": _row_again, "key twice": _key_twice, "rename": _rename, "add key": _add_key, "lengthen": _lengthen,
    "insert": _insert, "cut": _cut, "whole": _whole,
}  # fmt: skip


# --- bytes ----------------------------------------------------------------------------------------------------------

_PIECES = (
    *(
        b"\x00",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\r",
        b" ",
        b"\x80",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
    ),
    *(b'"', b"\\", b"\\u", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"e9", b".", b"null", b"NaN", b"\x1f\x8b"),
    *(b"\x0c", b"\xe2\x80\xa8", b"\x00" * 64, b"\xff" * 8, b"PAR1", b"9" * 5000, b"[" * 100_000),
)


def _at(data: bytes, at: int) -> int:
    """A place in the data; small numbers count from the end, where files are torn and Parquet keeps its schema."""
    return max(len(data) - 1 - at, 0) if at < 64 else at * 31 % (len(data) or 1)


def _truncate(data: bytes, at: int, what: int) -> bytes:
    return data[: _at(data, at)]


def _flip(data: bytes, at: int, what: int) -> bytes:
    place = _at(data, at)
    return data[:place] + bytes([data[place] ^ (1 << what % 8)]) + data[place + 1 :] if data else data


def _set(data: bytes, at: int, what: int) -> bytes:
    place = _at(data, at)
    return data[:place] + bytes([what % 256]) + data[place + 1 :] if data else data


def _insert_bytes(data: bytes, at: int, what: int) -> bytes:
    place = _at(data, at)
    return data[:place] + _PIECES[what % len(_PIECES)] + data[place:]


def _begin_with(data: bytes, at: int, what: int) -> bytes:
    return _PIECES[what % len(_PIECES)] + data


def _drop(data: bytes, at: int, what: int) -> bytes:
    place = _at(data, at)
    return data[:place] + data[place + 1 + what % 16 :]


def _repeat(data: bytes, at: int, what: int) -> bytes:
    """A stretch of the file twice: two writers, or a copy gone wrong."""
    place = _at(data, at)
    return data[: place + what] + data[place:]


def _recode(data: bytes, at: int, what: int) -> bytes:
    """Other line ends, another encoding, other spacing."""
    return (
        data.replace(b"\n", b"\r\n"),
        data.replace(b"\n", b"\r"),
        data.replace(b"\n", b""),
        data.replace(b"\n", b"\n\n \n"),
        data.replace(b",", b",\n"),
        data.decode("utf-8", "replace").encode("utf-16"),
        data.decode("utf-8", "replace").encode("latin-1", "replace"),
        data.removesuffix(b"\n"),
        data + data if len(data) < LONG else data,
        data.replace(b" ", b" " * 50) if len(data) < LONG else data,
    )[what % 10]


BYTES: Mapping[str, Callable[[bytes, int, int], bytes]] = {
    "truncate": _truncate, "flip": _flip, "set": _set, "insert bytes": _insert_bytes, "begin with": _begin_with,
    "drop": _drop, "repeat": _repeat, "recode": _recode,
}  # fmt: skip


# --- Parquet --------------------------------------------------------------------------------------------------------


def _parquet(rows: list[Any], damages: list[Damage], path: Path) -> bytes:
    """The rows that are objects as Parquet; a damage of the text makes a column one of another type."""
    objects = [row for row in rows if isinstance(row, dict)]
    names = [*dict.fromkeys(key.encode("utf-8", "replace").decode() for row in objects for key in row)]
    columns = [_column([row.get(name) for row in objects]) for name in names]
    for damage in damages:
        if columns:
            columns[damage.at % len(columns)] = _odd_column(len(objects), damage.what)
    names = [names[0], *names[:-1]] if any(damage.kind == "repeat" for damage in damages) and names else names
    schema = pa.schema([pa.field(name, column.type) for name, column in zip(names, columns, strict=True)])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, row_group_size=2)
    return bytes(sink.getvalue())


def _column(values: list[Any]) -> Any:
    plain = [_without_raw(value) for value in values]
    with contextlib.suppress(pa.ArrowException, ValueError, OverflowError, TypeError):  # values of several types
        column = pa.array(plain)
        pq.write_table(pa.table({"a": column}), pa.BufferOutputStream())  # not every type can be written
        return column
    return pa.array([None if value is None else spell(value) for value in values], pa.string())


def _without_raw(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_raw(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_raw(item) for item in value]
    return str(value)[:1000] if isinstance(value, Raw) else value


def _odd_column(count: int, what: int) -> Any:
    types = (
        *(pa.binary(), pa.date32(), pa.time64("ns"), pa.duration("ns"), pa.decimal128(30, 2), pa.null(), pa.float16()),
        *(pa.timestamp("ns"), pa.timestamp("ms"), pa.timestamp("us", "Nowhere/Land"), pa.timestamp("us", "+01:00")),
        *(pa.map_(pa.string(), pa.int64()), pa.list_(pa.binary()), pa.struct([("a", pa.int8())]), pa.uint64()),
        pa.dictionary(pa.int32(), pa.string()),
    )
    kind = types[what % len(types)]
    number = 2**60 + 1 if what % 3 else 1
    values: dict[Any, list[Any]] = {
        pa.map_(pa.string(), pa.int64()): [[("a", 1)]] * count,
        pa.list_(pa.binary()): [[b"\xff"]] * count,
        pa.struct([("a", pa.int8())]): [{"a": 1}] * count,
        pa.binary(): [b"\xff\x00"] * count,
        pa.dictionary(pa.int32(), pa.string()): ["a"] * count,
        pa.null(): [None] * count,
        pa.float16(): [1.5] * count,
        pa.date32(): [2**31 - 1 if what % 3 else 1] * count,
        pa.decimal128(30, 2): [1] * count,
        pa.uint64(): [2**63] * count,
    }
    return pa.array(values.get(kind, [number] * count), kind)


# --- what hypothesis draws ------------------------------------------------------------------------------------------

_NUMBERS = st.integers(0, 9999)
_STRUCTURE = st.builds(Damage, st.sampled_from([*STRUCTURE]), _NUMBERS, _NUMBERS)
_BYTES = st.builds(Damage, st.sampled_from([*BYTES]), _NUMBERS, _NUMBERS)


def damages() -> st.SearchStrategy[Damages]:
    """Mostly of the structure, since what is broken in its bytes is seldom read far."""
    none: st.SearchStrategy[list[Damage]] = st.just([])
    return st.one_of(
        st.builds(Damages, st.lists(_STRUCTURE, min_size=1, max_size=2), none, none),
        st.builds(Damages, st.lists(_STRUCTURE, min_size=2, max_size=4), none, none),
        st.builds(Damages, st.lists(_STRUCTURE, max_size=1), st.lists(_BYTES, min_size=1, max_size=2), none),
        st.builds(Damages, none, none, st.lists(_BYTES, min_size=1, max_size=2)),
    )


# --- what must hold -------------------------------------------------------------------------------------------------


class HungError(AssertionError):
    """Reading took too long. No reader catches an AssertionError."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fail, from within, what computes for too long; waiting for a busy machine does not count."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HungError(f"still at it after {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def reads(read: Callable[[], T], *named: str) -> T | None:
    """What a reader gives, or None where it refuses its file as it should: in one line that names the file.

    Args:
        named: the names of files, one of which the line must hold.
    """
    with warnings.catch_warnings(), bounded():
        warnings.simplefilter("error")
        try:
            return read()
        except CpmiError as error:
            text = str(error)
            assert len(text.splitlines()) == 1, f"not one line: {text!r}"
            assert any(name in text for name in named), f"does not name {' or '.join(named)}: {text!r}"
    return None
