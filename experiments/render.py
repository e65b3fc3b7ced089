"""Put the tables of experiments/results into docs/results.md, between ``<!-- table NAME PREFIX -->`` and an end mark.

    python experiments/render.py

PREFIX chooses rows by how they begin (``_`` stands for a space; none: all rows), and is left out of the table. Reward
models (``table_prm.py``) stand between ``<!-- prm NAME -->`` and an end mark.
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
SUBSETS = {
    "gsm8k": "GSM8K",
    "math": "MATH",
    "olympiadbench": "OlympiadBench",
    "omnimath": "Omni-MATH",
    "average": "average",
}
_PRM_MARK = re.compile(r"(<!-- prm (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
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


def prm_table(name: str) -> str:
    """Markdown of reward models: F1 of ProcessBench by the threshold found on GSM8K, the mean over the seeds."""
    kept = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in kept["rows"]:
        grouped.setdefault((row["row"], row["n"]), []).append(row)
    head = ["labels, targets", "n", *SUBSETS.values(), "average, 0.5", "average, oracle"]
    lines = [f"`{kept['command']}`", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (kind, n), rows in grouped.items():
        columns = [f"gsm8k-tuned {each}" for each in SUBSETS] + ["fixed-0.5 average", "oracle average"]
        cells = [_over_seeds([row[column][0] for row in rows]) for column in columns]
        lines.append(f"| {kind} | {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _over_seeds(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"


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

    text = _MARK.sub(filled, text)
    page.write_text(_PRM_MARK.sub(lambda match: match[1] + prm_table(match[2]) + match[3], text))


if __name__ == "__main__":
    main()
