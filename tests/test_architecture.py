"""The design as tests: who may import whom, what is public, and what must not be loaded to say hello."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cpmi

SOURCE = Path(cpmi.__file__).parent

# A module may import from the lines above its own.
LAYERS = [
    ["errors"],
    ["storage"],
    ["records"],
    ["protocols", "answer_forms", "steps"],
    ["answers", "formulas", "sources", "prompts"],
    ["grading_worker", "gold", "asking"],
    ["grader", "tasks"],
    ["models"],
    ["labelers", "prm"],
    ["runs", "metrics", "aggregation"],
    ["parts", "search", "solutions", "export", "results", "decisions", "normalizers", "rl"],
    ["running", "rollout_file"],
    ["ray_runs"],
    ["benchmarks"],
    ["labeling", "solve", "evaluate", "compare", "combine", "targets", "selection", "verify", "fitting"],
    ["training"],
    ["loop"],
    ["report", "serving"],
    ["display"],
    ["cli"],
]

HEAVY = {
    "torch": {"models", "prm"},
    "transformers": {"models", "prm"},
    "peft": {"prm"},
    "datasets": {"sources"},
    "sklearn": {"benchmarks", "normalizers"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "math_verify": {"grading_worker"},
    "vllm": {"models"},
    "openai": {"models"},
    "ray": {"ray_runs"},
    "fastapi": {"serving"},
    "starlette": {"serving"},
    "pydantic": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
    "rich": {"display", "cli"},
    "typer": {"cli"},
}


def group(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it, but for type checking alone."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


MODULES = sorted(p for p in SOURCE.rglob("*.py") if group(p) not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "cpmi" and len(parts) > 1 and parts[1] != group(path):
            above = level[parts[1]] < level[group(path)]
            assert above, f"{path.relative_to(SOURCE)} imports {module}, which is not above it"
        assert group(path) in HEAVY.get(parts[0], {group(path)}), f"{path.relative_to(SOURCE)} imports {module}"


def test_the_public_names_are_these() -> None:
    assert set(cpmi.__all__) == {
        "CPMI",
        "PRM",
        "CPMISettings",
        "Cost",
        "CpmiError",
        "InputError",
        "ModelSettings",
        "NegativeSettings",
        "SiblingAnswers",
        "StepRewards",
        "Template",
        "Trajectory",
        "open_model",
        "read_rewards",
        "read_trajectories",
        "write_records",
    }
    for name in cpmi.__all__:
        assert getattr(cpmi, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cpmi.nothing  # noqa: B018


@pytest.mark.parametrize("code", ["import cpmi", "import cpmi; cpmi.Trajectory", "import cpmi.cli"])
def test_saying_hello_loads_nothing_heavy(code: str) -> None:
    check = f"{code}; import sys; print([m for m in ('torch', 'numpy', 'pyarrow', 'transformers') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
