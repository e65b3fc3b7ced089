"""States of a frozen decoder on disk: computed once, then many heads are trained, and many benchmarks scored, on them.

A folder holds

    manifest.json             whose states these are: the decoder's revision and dtype
    states-*.safetensors      one tensor (steps, H) each; its metadata says whose rows are where

A file appears under its name only when it is whole, so a killed process loses at most what it had not written yet.
Several processes may write into one folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cpmi.errors import InputError
from cpmi.prm.encode import Encoded
from cpmi.prm.states import StateReader, StepStates
from cpmi.records import JSON, Cost, write_whole

FORMAT = 1
_AT_A_TIME = 256  # trajectories in a file: what a kill may cost


class FeatureCache:
    """States by the tokens that they were computed from."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, or begin one; what is in it is looked up, not loaded.

        Raises:
            InputError: something else is there.
        """
        self._folder = folder
        self._places: dict[str, tuple[Path, int, int]] = {}
        if (
            folder.exists()
            and not (folder / "manifest.json").exists()
            # A name with a dot: another process is putting the manifest there just now.
            and (not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir()))
        ):
            raise InputError(f"{folder} holds no cached features; choose another --features")
        for file in sorted(folder.glob("states-*.safetensors")):
            self._index(file)

    def __len__(self) -> int:
        return len(self._places)

    def require(self, revision: str | None, dtype: str) -> None:
        """Make sure that the states are those of this decoder.

        Raises:
            InputError: they are another's.
        """
        if revision is None:
            raise InputError(
                "the hub's cache does not say which revision this model has, so that its features could be taken for "
                "another's; download it into a folder, and name that"
            )
        file = self._folder / "manifest.json"
        here: dict[str, JSON] = {"format": FORMAT, "decoder": revision, "dtype": dtype}
        if file.exists():
            try:
                there = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{file}: broken ({error}); restore it, or choose another --features") from error
            if there != here:
                raise InputError(f"{self._folder} holds features of another decoder ({there}; here {here})")
        else:
            write_whole(file, (json.dumps(here) + "\n").encode())

    def states(
        self,
        encoded: Sequence[Encoded],
        reader: StateReader,
        on_done: Callable[[StepStates], None] = lambda _: None,
    ) -> list[StepStates]:
        """The states of each trajectory, in order: from disk, else computed and put there.

        Args:
            on_done: called with each as it is computed.
        """
        keys = [_key(each) for each in encoded]
        missing = [index for index, key in enumerate(keys) if key not in self._places]
        errors: dict[str, StepStates] = {}
        costs: dict[str, Cost] = {}
        waiting: dict[str, Tensor] = {}

        def keep(place: int, found: StepStates) -> None:
            key = keys[missing[place]]
            costs[key] = costs.get(key, Cost()) + found.cost
            if found.states is None:
                errors[key] = found
            else:
                waiting[key] = found.states
            on_done(found)
            if len(waiting) >= _AT_A_TIME:
                self._write(waiting)
                waiting.clear()

        reader.read([encoded[index] for index in missing], keep)
        self._write(waiting)
        opened: dict[Path, Tensor] = {}
        # What was written is mapped from disk, and takes no memory; of equal trajectories the first one has the cost.
        return [errors.get(key) or StepStates(self._read(key, opened), costs.pop(key, Cost())) for key in keys]

    def _read(self, key: str, opened: dict[Path, Tensor]) -> Tensor:
        from safetensors.torch import load_file

        file, start, count = self._places[key]
        if file not in opened:
            opened[file] = load_file(file)["states"]  # mapped, not read
        return opened[file][start : start + count]

    def _write(self, rows: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save

        if not rows:
            return
        ends = list(itertools.accumulate(map(len, rows.values()), initial=0))
        table = [(key, start, len(states)) for start, (key, states) in zip(ends, rows.items(), strict=False)]
        whole = torch.cat(list(rows.values())).contiguous()
        file = self._folder / f"states-{uuid.uuid4().hex}.safetensors"
        write_whole(file, save({"states": whole}, metadata={"rows": json.dumps(table)}))
        self._places |= {key: (file, start, count) for key, start, count in table}

    def _index(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as tensors:
                rows = json.loads(tensors.metadata()["rows"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: broken ({error}); remove it, and its features are computed again") from error
        self._places |= {key: (file, start, count) for key, start, count in rows}


def _key(encoded: Encoded) -> str:
    text = json.dumps([encoded.ids, encoded.ends])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
