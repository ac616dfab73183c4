"""The CUDA builds that requirements/cuda.txt locks can be installed: what the Makefile and the Dockerfile ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def resolved(*extras: str) -> set[str]:
    """What uv would install for a Linux machine with a GPU, whatever this one is; skips without an index."""
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "pyproject.toml", "--quiet", "--no-header"]
    command += ["--no-annotate", "--python-version=3.11", "--python-platform=x86_64-manylinux_2_28"]
    command += ["--constraints=requirements/cuda.txt", "--overrides=requirements/overrides-cuda.txt"]
    command += [f"--extra={extra}" for extra in extras]
    environment = os.environ | {"UV_FIND_LINKS": ""}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "Failed to fetch" in found.stderr or "error sending request" in found.stderr:
        pytest.skip(f"no index of packages: {found.stderr.splitlines()[-1].strip()}")
    assert found.returncode == 0, found.stderr
    return set(found.stdout.split("\n")) - {""}


def test_the_cuda_builds_resolve_to_what_is_locked() -> None:
    locked = {line for line in (ROOT / "requirements" / "cuda.txt").read_text().splitlines() if line[0] != "#"}
    assert resolved("cuda", "dev") == locked
    assert {"torch==2.13.0", "torchrec==1.8.0", "fbgemm-gpu==1.8.0"} <= resolved("cuda") <= locked
