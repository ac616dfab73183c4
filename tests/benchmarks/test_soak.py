"""What the soak measures, on numbers that are known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak_checks import _slope, left_in, rows_of
from trainer.checked_json import write_checked
from trainer.progress import VERSION


def test_growth_is_that_within_processes_and_not_between_them() -> None:
    lives = [np.array([[start + t, level + t * 5 / 3600] for t in range(0, 600, 5)])
             for start, level in ((0, 900.0), (700, 100.0))]  # fmt: skip
    mean, growth = _slope(lives)
    assert growth == pytest.approx(5)
    assert mean == pytest.approx(500 + 5 / 3600 * np.arange(0, 600, 5).mean())


def test_a_batch_that_is_given_again_counts_once_and_a_row_that_is_not(tmp_path: Path) -> None:
    """A row comes again where a resumed worker gives it in another batch. The last line of a killed worker is cut."""
    first, second, other = [0, 0, 11, [1, 2]], [0, 1, 12, [3]], [0, 1, 13, [3, 4]]
    (tmp_path / "1.rows").write_text("".join(json.dumps(line) + "\n" for line in (first, second)) + "[0, 0, 14")
    (tmp_path / "2.rows").write_text("".join(json.dumps(line) + "\n" for line in (first, other)))
    epochs, again = rows_of(tmp_path)
    assert (epochs, again) == ({0: Counter({1: 1, 2: 1, 3: 2, 4: 1})}, 1)
    (tmp_path / "3.rows").write_text(json.dumps([0, 0, 11, [1, 5]]))
    with pytest.raises(AssertionError, match="epoch 0, worker 0: a batch was given again with other rows"):
        rows_of(tmp_path)


def test_what_an_ended_save_leaves_is_found(tmp_path: Path) -> None:
    whole, cut = tmp_path / "step-0000000001", tmp_path / "step-0000000002"
    for folder in (whole, cut):
        folder.mkdir()
        (folder / "pieces-ab-1-0.bin").touch()
        (folder / "pieces-ab-1-0.json").touch()
    write_checked(str(whole / "complete.json"), {"version": VERSION, "pieces": ["pieces-ab-1-0"]})
    assert left_in(str(tmp_path)) == [
        "step-0000000002/pieces-ab-1-0.bin",
        "step-0000000002/pieces-ab-1-0.json",
        "step-0000000002",
    ]
    (whole / "pieces-ab-2-0.bin").touch()
    (whole / ".complete.json.partial").touch()
    assert left_in(str(tmp_path))[:2] == [
        "step-0000000001/.complete.json.partial",
        "step-0000000001/pieces-ab-2-0.bin",
    ]
