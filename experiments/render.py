"""Put the tables of experiments/results into docs/results.md, between ``<!-- table NAME PREFIX -->`` and an end mark.

    python experiments/render.py

PREFIX chooses rows by how they begin (``_`` stands for a space; none: all rows), and is left out of the table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "f1": "first-error F1, best threshold",
    "f1_at_half": "at 0.5",
    "auc": "pooled AUC",
    "within": "within AUC",
}
_MARK = re.compile(r"(<!-- table (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str, prefix: str) -> str:
    """Markdown of the rows of one file."""
    kept = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())
    rows = [row for row in kept["rows"] if row["row"].startswith(prefix)]
    sizes = [row for row in rows if "n" in row and "f1" not in row]
    figures = [row for row in rows if "f1" in row]
    said = "".join(f"{row['n']} trajectories, {row['wrong']} with an error. " for row in sizes if "wrong" in row)
    lines = [f"{said}`{kept['command']}`", "", "| | " + " | ".join(COLUMNS.values()) + " |", "|---" * 5 + "|"]
    lines += [f"| {_name(row, prefix)} | " + " | ".join(_cell(row, key) for key in COLUMNS) + " |" for row in figures]
    return "\n".join(lines) + "\n"


def _name(row: dict[str, Any], prefix: str) -> str:
    return str(row["row"]).removeprefix(prefix).strip(" :").replace("|", r"\|")


def _cell(row: dict[str, Any], key: str) -> str:
    if row.get(key) is None:
        return "-"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return f"{row[key]:.2f}" + (f" ({low:.2f}-{high:.2f})" if key.startswith("f1") and low is not None else "")


def main() -> None:
    """Rewrite the page."""
    page = ROOT / "docs" / "results.md"
    text = page.read_text()

    def filled(match: re.Match[str]) -> str:
        return match[1] + table(match[2], (match[3] or "").replace("_", " ")) + match[4]

    page.write_text(_MARK.sub(filled, text))


if __name__ == "__main__":
    main()
