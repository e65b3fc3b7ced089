"""Files of all kinds -> ``(place, value)``, a row each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cpmi.errors import InputError, require
from cpmi.records import open_bytes, read_rows


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
        with open_bytes(path) as file:
            value = json.loads(file.read().decode("utf-8"))
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deep") from error
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            problem = f"broken JSON ({error.msg} at column {error.colno})"
            raise InputError(f"{path}:{error.lineno}: {problem}; mend or replace this file") from error
        yield from read_rows(path)
        return
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
    """The rows of a folder made by ``save_to_disk``, or of a name on the Hugging Face hub."""
    datasets = require("datasets", "datasets")
    saved = any((Path(name) / mark).exists() for mark in ("dataset_dict.json", "dataset_info.json"))
    hub_name, _, configuration = name.partition(":")
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(hub_name, configuration or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # what datasets documents
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: the datasets library cannot load this ({problem})") from error
    if isinstance(loaded, Mapping):
        loaded = _chosen(name, loaded, split)
    elif saved and split is not None:
        raise InputError(f"{name}: this folder holds one split without a name; leave out --split")
    for number, row in enumerate(loaded, start=1):
        yield f"{name}, row {number}", row


def _chosen(name: str, splits: Mapping[str, Any], split: str | None) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        problem = "it has several splits" if split is None else f"it has no split {split!r}"
        raise InputError(f"{name}: {problem}; choose one with --split (there are: {', '.join(splits)})")
    return splits[split]
