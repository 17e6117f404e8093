"""Imports and includes run one way: a file uses only what lies below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON_LAYERS = [
    {"pytl", "pytl.__main__"},
    {"pytl.cli"},
    {"pytl.commands"},
    {"pytl.transferability"},
    {"pytl.study", "pytl.benchmark"},
    {"pytl.trials"},
    {"pytl.advice"},
    {"pytl.training", "pytl.data", "pytl.doctor", "pytl.integrations"},
    {"pytl.analysis", "pytl.noise", "pytl.plan", "pytl.recorder", "pytl.regularizers", "pytl.rifle"},
    {"pytl.optim", "pytl.features"},
    {"pytl.ops", "pytl.depth"},
    {"pytl.pictures", "pytl.metrics"},
    {
        "pytl.directions",
        "pytl.architecture",
        "pytl.initialisers",
        "pytl.periods",
        "pytl.batch",
        "pytl.progress",
        "pytl.seeding",
        "pytl.threads",
        "pytl.weight_files",
    },
    {"pytl.files"},
    {"pytl.pages", "pytl.intervals", "pytl.digest"},
    {"pytl.extras"},
]
NATIVE_LAYERS = [{"bindings"}, {"cpu", "cuda"}, {"tensor_list", "feature_list"}, {"formulas"}, {"element"}]


def part_of(module: str) -> str:
    """The layer's member that a module belongs to: its first two names."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pytl"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pytl"):
            yield from ([f"pytl.{a.name}" for a in node.names] if node.module == "pytl" else [node.module])
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "relative imports: name the module in full"


def level(layers: list[set[str]], member: str) -> int:
    return next((i for i, layer in enumerate(layers) if member in layer), -1)


@pytest.mark.parametrize("path", sorted((ROOT / "pytl").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_python_imports_run_downwards(path: Path) -> None:
    names = list(path.relative_to(ROOT).with_suffix("").parts)
    own = part_of(".".join(names[:-1] if names[-1] == "__init__" else names))
    assert level(PYTHON_LAYERS, own) >= 0, f"{own} has no layer: give it one in {Path(__file__).name}"
    for imported in imports(path):
        other = part_of(imported)
        assert other == own or level(PYTHON_LAYERS, other) > level(PYTHON_LAYERS, own), f"{own} imports {imported}"


def test_only_ops_names_the_compiled_module() -> None:
    users = [p for p in (ROOT / "pytl").rglob("*.py") if re.search(r"pytl\._core|import _core", p.read_text())]
    assert [str(p.relative_to(ROOT)) for p in users] == ["pytl/ops/core.py"]


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu"}),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_native_includes_run_downwards(path: Path) -> None:
    def member(file: Path) -> str:
        return file.relative_to(ROOT / "csrc").parts[0].removesuffix(file.suffix)

    text = path.read_text()
    for included in re.findall(r'#include "(.*)"', text.replace('#include "shim.h"', "")):
        other = member((path.parent / included).resolve())
        own = member(path)
        assert other == own or level(NATIVE_LAYERS, other) > level(NATIVE_LAYERS, own), f"{path} includes {included}"
    outside = re.findall(r"#include <((?:torch|ATen|c10|Python|pybind11)\b.*)>", text)
    assert not outside or (path.name == "bindings.cpp" and all(name.startswith("pybind11") for name in outside))
