"""A made log read back is what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import InputError
from ingest.sources.simulate import SimulateConfig, make_world, simulate_block
from ingest.sources.simulate_truth import MadeLog

CONFIG = SimulateConfig(users=40, items=90, days=12, seed=9, user={"sessions": 5.0}, rule={"follow": 0.3}, processes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("log"))
    CONFIG.make(folder)
    return folder


def test_what_is_read_is_what_was_drawn(folder: str) -> None:
    log, (catalogue, pools) = MadeLog(folder), make_world(CONFIG)
    assert log.config == CONFIG.model_copy(update={"processes": None})
    for name, value in vars(catalogue).items():
        np.testing.assert_array_equal(getattr(log.pools.catalogue, name), value)
    np.testing.assert_array_equal(log.pools.released, pools.released)
    np.testing.assert_array_equal(log.pools.cumulative, pools.cumulative)
    drawn = simulate_block(CONFIG, catalogue, pools, 0)
    np.testing.assert_array_equal(log.offsets, [*drawn.timeline.first, len(drawn.item)])
    np.testing.assert_array_equal(log.item, drawn.item)
    np.testing.assert_array_equal(log.action, drawn.shown_action)
    np.testing.assert_array_equal(log.time - log.first_time, (1000 * drawn.timeline.second).astype(np.int64))
    for name in ("action", "genre", "content_type", "age", "kept"):
        np.testing.assert_array_equal(getattr(log.intents, name), getattr(drawn, name))
    for name, value in (("genres", "taste"), ("actions", "actions"), ("ages", "ages")):
        np.testing.assert_array_equal(getattr(log.tastes, name), getattr(drawn.users, value))
    np.testing.assert_array_equal(log.tastes.content_types[:, 1], drawn.users.series_share)
    np.testing.assert_allclose(log.tastes.content_types.sum(axis=1), 1)


def test_the_days_sessions_and_parts_of_day_follow_from_the_times(folder: str) -> None:
    log, (catalogue, pools) = MadeLog(folder), make_world(CONFIG)
    timeline = simulate_block(CONFIG, catalogue, pools, 0).timeline
    slot = (log.time - log.first_time) // 21_600_000
    np.testing.assert_array_equal(slot // 4, timeline.day)
    np.testing.assert_array_equal(slot % 4, timeline.part)
    one_user = np.diff(timeline.user) == 0
    np.testing.assert_array_equal((np.diff(slot) != 0)[one_user], timeline.new_session[1:][one_user])


def test_another_folder_is_refused_by_its_name(folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: there is no truth/rule.json in it, so it is not a log"):
        MadeLog(str(tmp_path))
    (tmp_path / "truth").mkdir()
    rule = json.loads(Path(folder, "truth", "rule.json").read_text())
    (tmp_path / "truth" / "rule.json").write_text(json.dumps(rule))
    with pytest.raises(InputError, match=r"there is no truth/users\.parquet"):
        _ = MadeLog(str(tmp_path)).tastes
    (tmp_path / "truth" / "users.parquet").write_bytes(Path(folder, "truth", "users.parquet").read_bytes()[:90])
    with pytest.raises(InputError, match=r"truth/users\.parquet: can not be read as Parquet"):
        _ = MadeLog(str(tmp_path)).tastes
    (tmp_path / "events").mkdir()
    with pytest.raises(InputError, match=f"^{tmp_path}/events: there is no Parquet file in it"):
        _ = MadeLog(str(tmp_path)).item
    (tmp_path / "truth" / "rule.json").write_text("{")
    with pytest.raises(InputError, match=r"rule\.json: is not JSON"):
        MadeLog(str(tmp_path))
    rule["action_transitions"][0][0] += 1
    (tmp_path / "truth" / "rule.json").write_text(json.dumps(rule))
    with pytest.raises(InputError, match=r"rule\.json: action_transitions is not what this release simulates by"):
        MadeLog(str(tmp_path))
