"""Files of all kinds -> ``(place, value)``, a row each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cpmi.errors import InputError, require
from cpmi.records import first_line, json_problem, open_bytes, read_rows, unpacking


def read_any(path: Path) -> Iterator[tuple[str, Any]]:
    """Stream ``(place, value)`` from JSON lines or Parquet, or from a ``.json`` file that is one list or one object.

    An object whose values are all objects holds a row each; the key becomes the row's ``id`` if it has none. A
    ``.json`` file is read whole; one that holds JSON lines after all (ProcessBench's early files) is read as such.

    Raises:
        InputError: a missing file, or one that is not what its name says, with the line.
    """
    endings = path.suffixes[-2:] if path.suffix == ".gz" else [path.suffix]
    if endings == [".parquet", ".gz"]:
        raise InputError(f"{path}: unpack this file first; Parquet is compressed inside")
    if endings == [".parquet"] and path.is_file():
        yield from _with_nulls(path)
        return
    if endings[0] != ".json" or not path.is_file():
        yield from read_rows(path)
        return
    try:
        with unpacking(path), open_bytes(path) as file:
            value = json.loads(file.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            problem = f"broken JSON ({error.msg} at column {error.colno})"
            raise InputError(f"{path}:{error.lineno}: {problem}; mend or replace this file") from error
        yield from read_rows(path)
        return
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({json_problem(error)}); mend or replace this file") from error
    for number, row in enumerate(_listed(value), start=1):
        yield f"{path}, row {number}", row


def _with_nulls(path: Path) -> Iterator[tuple[str, Any]]:
    """Parquet rows with a key for every column, since a null is a value in some formats ("no mistake")."""
    columns: dict[str, None] | None = None
    for place, row in read_rows(path):
        if columns is None:
            import pyarrow.parquet

            columns = dict.fromkeys(pyarrow.parquet.read_schema(path).names)
        yield place, {**columns, **row}


def _holds_rows(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _listed(value: Any) -> list[Any]:
    if _holds_rows(value):
        return [{"id": key, **row} for key, row in value.items()]
    return value if isinstance(value, list) else [value]


def dataset_rows(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    """The rows of a folder made by ``save_to_disk``, or of a name on the Hugging Face hub.

    Raises:
        InputError: the library is not installed, or cannot load or read this; a split that does not fit.
    """
    datasets = require("datasets", "datasets")
    import pyarrow

    # A name that is missing in a folder's own files, or stands for something else, fails wherever the library uses it.
    misnamed = (LookupError, TypeError, AttributeError)
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pyarrow.ArrowException, *misnamed)
    try:
        for number, row in enumerate(_load_dataset(datasets, name, split), start=1):
            yield f"{name}, row {number}", row
    except failures as error:
        raise InputError(f"{name}: the datasets library cannot load this ({first_line(error)})") from error


def _load_dataset(datasets: ModuleType, name: str, split: str | None) -> Iterable[Any]:
    saved = any((Path(name) / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json"))
    hub_name, _, configuration = name.partition(":")
    loaded: Any
    if saved:
        loaded = datasets.load_from_disk(name)
    else:
        loaded = datasets.load_dataset(hub_name, configuration or None, split=split)
    if isinstance(loaded, Mapping):
        loaded = _chosen(name, loaded, split)
    elif saved and split is not None:
        raise InputError(f"{name}: this folder holds one split without a name; leave out --split")
    if saved:
        loaded.data.validate(full=True)  # a damaged file would end the process: nobody else looks where it points
    rows: Iterable[Any] = loaded
    return rows


def _chosen(name: str, splits: Mapping[str, Any], split: str | None) -> Iterable[Any]:
    rows: Iterable[Any]
    if split is None and len(splits) == 1:
        (rows,) = splits.values()
        return rows
    if split is None or split not in splits:
        problem = "it has several splits" if split is None else f"it has no split {split!r}"
        raise InputError(f"{name}: {problem}; choose one with --split (there are: {', '.join(splits)})")
    rows = splits[split]
    return rows
