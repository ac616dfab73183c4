"""Temporary folders of processes that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from trainer.scratch import YOUNG, Scratch

TAKES = """
import time
from trainer.scratch import Scratch
scratch = Scratch("scratch-")
(scratch.path / "events").write_text("some")
print(scratch.path, flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", TAKES], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        own = Scratch("scratch-")
        for path in (left, own.path):
            made = time.time() - 2 * YOUNG
            os.utime(path, (made, made))
        assert Scratch("scratch-").path.parent == tmp_path
        assert left.exists()  # its process lives
        process.kill()
    young = tmp_path / "scratch-young"
    young.mkdir()
    Scratch("scratch-").remove()
    assert not left.exists()
    assert own.path.exists()
    assert young.exists()  # may have been made just now, and not yet be locked
    own.remove()
    assert list(tmp_path.iterdir()) == [young]
