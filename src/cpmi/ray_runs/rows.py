"""Rows between the stages of Ray Data: a batch as JSON lines, or an error that is meant for the user."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cpmi.errors import CpmiError, InputError
from cpmi.ray_runs.plan import Slice
from cpmi.records import first_line
from cpmi.storage import store_errors

if TYPE_CHECKING:
    import pyarrow as pa

BATCH, FAILED = "batch", "failed"


def row(kind: str, data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.table({"kind": [kind], "data": pa.array([data], pa.large_binary())})


def error_row(error: CpmiError) -> pa.Table:
    return row(FAILED, json.dumps([isinstance(error, InputError), str(error)]).encode())


def raise_row(data: bytes) -> None:
    is_input, text = json.loads(data)
    raise (InputError if is_input else CpmiError)(text)


def read_slice(piece: Slice) -> Iterator[pa.Table]:
    """What a read task does."""
    try:
        for batch in piece.batches():
            yield row(BATCH, batch)
    except CpmiError as error:
        yield error_row(error)
    except store_errors() as error:
        text = f"{piece.path}: the node {socket.gethostname()} cannot read this ({first_line(error)})"
        yield error_row(CpmiError(text))


def reader(piece: Slice) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:  # Ray asks functions for their name
        return read_slice(piece)

    return read


def nothing() -> Iterator[pa.Table]:
    yield row(BATCH, b"")
