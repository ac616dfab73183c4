"""The house: imports run downwards and never in a circle, files stay short, and reading a config is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [
    "ingest.errors",
    "ingest.credentials",
    "ingest.durations",
    "ingest.registry",
    "ingest.settings",
    "ingest.patience",
    "ingest.s3",
    "ingest.storage",
    "ingest.arrow_files",
    "ingest.arrays",
    "ingest.raw",
    "ingest.features",
    "ingest.data",
    "ingest.prepare",
    "ingest.sources",
    "embeddings",
    "trainer",
    "evaluation",
    "cluster",
]
"""From the ground up: a module imports from its own floor and from those before it."""
MOST_LINES = 400


def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    files = [path for top in {floor.split(".")[0] for floor in FLOORS} for path in (ROOT / top).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(files)}


def imported(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of the product that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            yield from {name, f"{name}.__init__"} & known


def floor_of(module: str) -> int:
    found = [n for n, floor in enumerate(FLOORS) if module == floor or module.startswith(f"{floor}.")]
    assert found or module == "ingest.__init__", f"{module} is on no floor: FLOORS names them"
    return found[0] if found else 0


def test_no_import_runs_upwards() -> None:
    found = modules()
    upwards = [
        f"{module} imports {name}"
        for module, path in found.items()
        for name in imported(path, set(found))
        if floor_of(name) > floor_of(module)
    ]
    assert not upwards, "\n".join(upwards)


def test_no_imports_run_in_a_circle() -> None:
    found = modules()
    graph = {module: set(imported(path, set(found))) - {module} for module, path in found.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_file_is_long() -> None:
    tops = ("ingest", "embeddings", "trainer", "evaluation", "cluster", "benchmarks", "tests")
    lengths = {path: len(path.read_text().splitlines()) for top in tops for path in (ROOT / top).rglob("*.py")}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MOST_LINES}
    assert not long


def test_reading_a_config_imports_no_torch_and_no_ray() -> None:
    configs = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    code = (
        "import sys\n"
        "from cluster.config import Config\n"
        "from ingest.settings import load_settings\n"
        f"for config in {configs}:\n"
        "    load_settings(Config, f'configs/{config}')\n"
        "    print(config, [name for name in ('torch', 'torchrec', 'ray', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{config} []" for config in configs], done.stdout + done.stderr
