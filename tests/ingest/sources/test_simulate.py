"""The made log: drawn by the documented rule, the same on any number of processes, and possible in itself."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ingest.errors import InputError
from ingest.settings import build_settings, load_settings
from ingest.sources import simulate as module
from ingest.sources.simulate import SimulateConfig, make_world, simulate_block
from ingest.sources.simulate_rule import (
    ACTIONS,
    CONTINUE,
    DISCOVER,
    KIDS,
    REWATCH,
    SERIES,
    TRENDING,
    Catalogue,
    Memory,
    Pools,
    Rule,
    States,
    action_weights,
    draw_items,
    item_probability,
    shown_action,
)
from ingest.sources.simulate_world import CatalogueSettings, make_titles

CONFIG = SimulateConfig(users=2_300, items=600, days=40, seed=5, user={"sessions": 8.0}, processes=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return CONFIG.make(str(tmp_path_factory.mktemp("log")))


@pytest.fixture(scope="module")
def events(made: dict[str, Any]) -> pl.DataFrame:
    """Events with the items' attributes and each user's running number of the event."""
    items = pl.read_parquet(f"{made['items_path']}/items.parquet")
    log = pl.read_parquet(f"{made['events_path']}/*.parquet").cast({"action": pl.String, "device": pl.String})
    return log.join(items, on="item_id", maintain_order="left")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_bytes_on_any_number_of_processes(made: dict[str, Any], tmp_path: Path) -> None:
    again = CONFIG.model_copy(update={"processes": 2}).make(str(tmp_path))
    assert digests(tmp_path) == digests(Path(made["events_path"]).parent)
    assert {"events/part-00000.parquet", "events/part-00001.parquet", "items/items.parquet"} <= set(digests(tmp_path))
    assert again["events"] == made["events"]


def test_another_seed_makes_another_log(tmp_path: Path) -> None:
    one, two = (CONFIG.model_copy(update={"users": 50, "seed": seed}) for seed in (1, 2))
    one.make(str(tmp_path / "1"))
    two.make(str(tmp_path / "2"))
    first, second = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert all(first[name] != second[name] for name in first)


def test_counts_and_types(made: dict[str, Any], events: pl.DataFrame) -> None:
    assert made["events"] == events.height
    assert events["user_id"].n_unique() == CONFIG.users
    assert events.group_by("user_id").len()["len"].min() == 3
    assert events["item_id"].dtype == events["session_id"].dtype == pl.Int64
    assert events["timestamp"].dtype == pl.Datetime("ms")
    assert events["watch_seconds"].dtype == pl.Float32
    assert events["release_date"].dtype == pl.Date
    assert set(events["action"]) == set(ACTIONS)


def test_times_and_sessions(events: pl.DataFrame) -> None:
    start = pl.lit(CONFIG.start).cast(pl.Datetime("ms"))
    after = pl.col("timestamp").diff().over("user_id")
    new_session = pl.col("session_id").diff().over("user_id")
    seconds = pl.col("timestamp").diff().over("session_id").shift(-1).over("session_id").dt.total_milliseconds() / 1e3
    bad = {
        "outside the span": (pl.col("timestamp") <= start) | (pl.col("timestamp") >= start + pl.duration(days=40)),
        "not after the event before": after <= pl.duration(),
        "session not in order": (new_session != 0) & (new_session != 1),
        "watched before its release": pl.col("release_date") > pl.col("timestamp").dt.date(),
        "watched longer than until the next": pl.col("watch_seconds") > seconds + 0.01,
        "watched for no time": pl.col("watch_seconds") <= 0,
    }
    assert events.select(pl.col("user_id") - pl.col("session_id") // module.SESSIONS_A_USER).sum().item() == 0
    counts = events.with_columns(**bad).select(pl.col(*bad).fill_null(False).sum())
    assert counts.row(0, named=True) == dict.fromkeys(bad, 0)


def test_goes_on_only_with_what_the_user_has_begun(events: pl.DataFrame) -> None:
    seen: defaultdict[int, set[int]] = defaultdict(set)
    for user, item, action, content_type in events.select("user_id", "item_id", "action", "content_type").rows():
        if action in ("continue_watching", "rewatch"):
            assert item in seen[user]
            assert content_type == ("series" if action == "continue_watching" else "film")
        seen[user].add(item)


def test_intents_are_aligned_with_the_events(made: dict[str, Any], events: pl.DataFrame) -> None:
    intents = pl.read_parquet(f"{made['truth_path']}/intents/*.parquet").with_columns(
        pl.exclude("kept").cast(pl.String)
    )
    assert intents.height == events.height
    both = pl.concat([events, intents.select(pl.all().name.prefix("intent_"))], how="horizontal")
    fell_back = (pl.col("action") == "discover") & pl.col("intent_action").is_in(["continue_watching", "rewatch"])
    assert both.filter((pl.col("action") != pl.col("intent_action")) & ~fell_back).is_empty()
    pool = both.filter(pl.col("action") == "trending")
    assert pool.select(pl.col("genres").list.contains(pl.col("intent_genre")).mean()).item() > 0.9
    same = both.select(~pl.col("intent_kept") | (pl.col("intent_genre") == pl.col("intent_genre").shift()))
    assert same.to_series().fill_null(True).all()
    inside = both.filter(pl.col("session_id").diff().over("user_id") == 0)
    assert inside["intent_kept"].mean() == pytest.approx(CONFIG.rule.stay, abs=0.01)


def test_popularity_is_a_power_law(made: dict[str, Any], events: pl.DataFrame) -> None:
    hidden = pl.read_parquet(f"{made['truth_path']}/items.parquet")
    weights = np.sort(hidden["popularity"].to_numpy())[::-1]
    slope = np.polyfit(np.log(np.arange(1, len(weights) + 1)), np.log(weights), 1)[0]
    assert slope == pytest.approx(-CONFIG.catalogue.popularity_exponent)
    watched = events.group_by("item_id").len().join(hidden, on="item_id")
    assert watched.select(pl.corr("len", "popularity", method="spearman")).item() > 0.4


def small_world() -> tuple[Catalogue, Pools]:
    return make_world(SimulateConfig(items=40, days=30, seed=3, catalogue=CatalogueSettings(franchise_size=5)))


def brute_force(catalogue: Catalogue, rule: Rule, state: dict[str, Any]) -> np.ndarray:
    """The probability of each item by the formulas of docs/simulation.md, item by item."""
    items = range(len(catalogue.weight))
    action = shown = state["action"]
    listed = [item for item in state["begun" if action == CONTINUE else "films"] if item >= 0]
    if action in (CONTINUE, REWATCH):
        if listed:
            weights = {item: rule.recency**k for k, item in enumerate(listed)}
            return np.array([weights.get(item, 0.0) for item in items]) / sum(weights.values())
        shown = DISCOVER
    weight = catalogue.weight ** (rule.trending_exponent if shown == TRENDING else 1.0)
    days = state["day"] - catalogue.release_day
    released = [item for item in items if days[item] >= 0 and item != state["last"]]
    low, high = ((0, 7), (7, 30), (30, 10**6))[state["age"]]
    genre = [item for item in released if catalogue.genres[item, state["genre"]]]
    typed = [item for item in genre if catalogue.content_type[item] == state["content_type"]]
    pool = [item for item in typed if low <= days[item] < high] or typed or genre or released
    probability = np.zeros(len(weight))
    probability[pool] = weight[pool] / weight[pool].sum()
    same = [item for item in released if catalogue.franchise[item] == catalogue.franchise[state["last"]]]
    if state["kept"] and state["last"] >= 0 and shown in (DISCOVER, KIDS) and same:
        followed = np.zeros(len(weight))
        followed[same] = weight[same] / weight[same].sum()
        probability = (1 - rule.follow) * probability + rule.follow * followed
    return probability


def random_states(catalogue: Catalogue, pools: Pools, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    released = np.flatnonzero(catalogue.release_day < pools.first_day)
    return [
        {
            "action": int(rng.integers(len(ACTIONS))),
            "genre": int(rng.integers(pools.genres)),
            "content_type": int(rng.integers(2)),
            "age": int(rng.integers(3)),
            "kept": bool(rng.random() < 0.6),
            "day": pools.first_day + int(rng.integers(30)),
            "last": int(rng.choice([-1, *released])),
            "begun": rng.permutation(np.pad(rng.choice(released, 3, replace=False), (0, 2), constant_values=-1)[:5]),
            "films": np.full(8, -1),
        }
        for _ in range(count)
    ]


def as_states(rows: list[dict[str, Any]]) -> States:
    return States(**{name: np.array([row[name] for row in rows]) for name in rows[0]})


def filled_from_the_front(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    known = row["begun"][row["begun"] >= 0][: rng.integers(0, 4)]
    films = known[::-1]
    return row | {
        "begun": np.pad(known, (0, 5 - len(known)), constant_values=-1),
        "films": np.pad(films, (0, 8 - len(films)), constant_values=-1),
    }


def test_probabilities_are_those_of_the_formulas() -> None:
    catalogue, pools = small_world()
    rng = np.random.default_rng(0)
    rows = [filled_from_the_front(row, rng) for row in random_states(catalogue, pools, 400, rng)]
    expected = np.stack([brute_force(catalogue, pools.rule, row) for row in rows])
    asked = as_states(rows).take(np.repeat(np.arange(len(rows)), pools.items))
    got = item_probability(pools, asked, np.tile(np.arange(pools.items), len(rows))).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(got.sum(axis=1), 1)


def test_draws_follow_the_formulas() -> None:
    """Chi-square over many draws of each of some states: the sum lies within 5 standard deviations of its mean."""
    catalogue, pools = small_world()
    rng = np.random.default_rng(1)
    draws = 4_000
    rows = [filled_from_the_front(row, rng) for row in random_states(catalogue, pools, 60, rng)]
    asked = as_states(rows).take(np.repeat(np.arange(len(rows)), draws))
    items, shown = draw_items(pools, asked, *rng.random((2, len(asked.action))))
    assert (shown == shown_action(asked)).all()
    chi_square, freedom = 0.0, 0
    for row, drawn in zip(rows, items.reshape(len(rows), draws), strict=True):
        expected = brute_force(catalogue, pools.rule, row) * draws
        counts = np.bincount(drawn, minlength=pools.items)
        assert counts[expected == 0].sum() == 0
        likely = expected > 0
        chi_square += float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
        freedom += int(likely.sum()) - 1
    assert freedom > 300
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_events_are_drawn_by_the_rule_from_the_replayed_log() -> None:
    """The simulator hands the rule the right state: every event is possible, and as likely as the rule says."""
    config = CONFIG.model_copy(update={"users": 60})
    catalogue, pools = make_world(config)
    block = simulate_block(config, catalogue, pools, 0)
    rows, timeline = [], block.timeline
    for first, count in zip(timeline.first, timeline.events, strict=True):
        memory, last = Memory(catalogue, config.rule, 1), -1
        for event in range(first, first + count):
            intent = {name: getattr(block, name)[event] for name in ("action", "genre", "content_type", "age", "kept")}
            lists = {"begun": memory.begun[0].copy(), "films": memory.films[0].copy()}
            rows.append(intent | lists | {"day": config.first_day + timeline.day[event], "last": last})
            last = block.item[event]
            memory.watch(block.item[event : event + 1])
    expected = np.stack([brute_force(catalogue, config.rule, row) for row in rows])
    seen = expected[np.arange(len(rows)), block.item]
    assert (seen > 0).all()
    mean, second = (expected**2).sum(axis=1), (expected**3).sum(axis=1)
    assert abs(seen.sum() - mean.sum()) < 5 * np.sqrt((second - mean**2).sum())
    np.testing.assert_array_equal(block.shown_action, shown_action(as_states(rows)))


def test_a_series_is_over_after_its_last_episode() -> None:
    catalogue, pools = small_world()
    series, other = np.flatnonzero(catalogue.content_type == SERIES)[:2]
    memory = Memory(catalogue, pools.rule, 1)
    memory.watch(np.array([other]))
    for episode in range(catalogue.episodes[series]):
        assert (memory.begun[0, 0] == series) == (episode > 0)
        memory.watch(np.array([series]))
    assert memory.begun[0].tolist() == [other, -1, -1, -1, -1]


def test_actions_depend_on_the_user_the_hour_and_the_action_before() -> None:
    preference = np.array([[0.5, 0.5, 0.0, 0.0, 0.0]])
    weights = [
        action_weights(preference, np.array([part]), np.array([before])) for part in (0, 1) for before in (-1, 0)
    ]
    assert len({tuple(weight[0]) for weight in weights}) == 4
    assert all((weight[0, 2:] == 0).all() for weight in weights)


def test_titles_differ() -> None:
    assert len(set(make_titles(3_000))) == 3_000


def test_a_log_made_here_is_replaced_and_no_other(tmp_path: Path) -> None:
    small = CONFIG.model_copy(update={"users": 10})
    (tmp_path / "log" / "events").mkdir(parents=True)
    (tmp_path / "log" / "events" / "mine.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"log/events: is there and was not made by simulate"):
        small.make(str(tmp_path / "log"))
    CONFIG.model_copy(update={"users": 2_001, "user": CONFIG.user}).make(str(tmp_path / "other"))
    small.make(str(tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other" / "events").iterdir()] == ["part-00000.parquet"]


def test_a_log_made_here_is_known_after_any_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of removing it, too: what tells that it was made here is never removed."""
    small = CONFIG.model_copy(update={"users": 10})
    small.make(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_rule", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small.make(str(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["truth", "truth/rule.json"]
    small.make(str(tmp_path))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"users": 0}, ["users", "0"]),
        ({"userz": 1}, ["userz"]),
        ({"rule": {"stay": 1.5}}, ["rule.stay", "1.5"]),
        ({"rule": {"stai": 1}}, ["rule.stai", "carry_days"]),
        ({"start": "soon"}, ["start", "soon"]),
        ({"processes": 0}, ["processes", "0"]),
    ],
)
def test_refuses_an_impossible_config(content: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        build_settings(SimulateConfig, content, "simulate.yaml")
    assert all(name in str(refused.value) for name in ["simulate.yaml", *names])


def test_reads_a_config_file_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "simulate.yaml").write_text("users: 10\nrule: {stay: 0.5}\n")
    config = load_settings(SimulateConfig, tmp_path / "simulate.yaml", ["rule.follow=0.1", "items=30"])
    assert (config.users, config.items, config.rule.stay, config.rule.follow) == (10, 30, 0.5, 0.1)
