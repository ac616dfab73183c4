"""What prepare counts of labels and transitions, and what it tells of senseless counts, against loops over its rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ingest.data.activity import BUCKET, read_activity
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.schema import DataConfig
from ingest.data.successions import Successions, read_successions
from ingest.data.transitions import read_transitions, target_counts
from ingest.errors import InputError
from ingest.prepare.pairs import summed_by
from ingest.prepare.pipeline import prepare
from tests.ingest.prepare.prepare_reference import FEATURES, SPLITS, config_for, random_log, split_reference, write_log
from tests.ingest.prepare.test_prepare import PARTITIONS, read_rows, simple_log

INTENTS = [
    dict(feature, intent=feature.get("kind") != "number" or "bins" in feature) for feature in yaml.safe_load(FEATURES)
]


def targets_of(out: Path, manifest: Manifest) -> list[tuple[dict[str, Any], int]]:
    """The rows of training with the place of each of their targets."""
    rows = read_rows(out, manifest, "train")
    return [(row, place) for row in rows for place in range(len(row["item"]) - row["targets"], len(row["item"]))]


def rarely_known(folder: Path, split: str, log: tuple[Any, Any], more: dict[str, int]) -> tuple[Path, Manifest]:
    """A log prepared so that training knows some of its items alone: where, and the manifest."""
    write_log(folder, *log, "string")
    out = folder / "out"
    return out, prepare(config_for(folder, split, min_item_count=4, **more), str(out), lambda _: None)


def steps_of(row: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Each item, when the next one was taken, and that one."""
    return list(zip(row["item"][:-1], row["time"][1:], row["item"][1:], strict=True))


def label_of(manifest: Manifest, items: dict[str, list[Any]], name: str, row: dict[str, Any], place: int) -> list[int]:
    """The labels of an intent at one interaction."""
    feature = manifest.feature(name)
    value = row[name][place] if feature.of == "event" else items[name][row["item"][place]]
    if feature.of == "item" and feature.kind == "elapsed":
        age = None if value is None else row["time"][place] - value
        value = 1 if age is None else 2 + sum(edge <= age for edge in feature.edges)
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("more", [{}, PARTITIONS], ids=["one partition", "several"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 3])
def test_majority_labels_are_those_of_the_training_targets(
    tmp_path: Path, seed: int, split: str, more: dict[str, int]
) -> None:
    write_log(tmp_path, *random_log(seed, "int"), "int")
    out = tmp_path / "out"
    manifest = prepare(
        config_for(tmp_path, split, features=INTENTS, min_item_count=2, **more), str(out), lambda _: None
    )
    items = pq.read_table(out / "items.parquet").to_pydict()
    assert len(manifest.intents) == 11
    assert set(manifest.majority) == {feature.name for feature in manifest.intents}
    for feature in manifest.intents:
        labels = [label_of(manifest, items, feature.name, *target) for target in targets_of(out, manifest)]
        known = Counter(label for each in labels for label in each if label > 1)
        assert manifest.majority[feature.name] == min(known, key=lambda label: (-known[label], label)), feature.name
    assert load_manifest(str(out)).majority == manifest.majority


@pytest.mark.parametrize("more", [{}, PARTITIONS], ids=["one partition", "several"])
@pytest.mark.parametrize("seed", range(3))
def test_transitions_are_the_known_pairs_of_training(tmp_path: Path, seed: int, more: dict[str, int]) -> None:
    out, manifest = rarely_known(tmp_path, "leave_one_out", random_log(seed, "string"), more)
    pairs = Counter((row["item"][place - 1], row["item"][place]) for row, place in targets_of(out, manifest))
    known = range(2, manifest.items)
    expected = sorted((*pair, count) for pair, count in pairs.items() if pair[0] in known and pair[1] in known)
    assert len(expected) < len(pairs)
    parts = list(read_transitions(str(out)))
    assert len(parts) == len(list((out / "transitions").iterdir()))
    found = np.concatenate([np.stack(part) for part in parts], axis=1)
    assert found.dtype == np.int64
    assert [tuple(column) for column in found.T.tolist()] == expected
    targets = Counter({item: sum(count for _, after, count in expected if after == item) for item in known})
    assert target_counts(str(out), manifest.items).tolist() == [targets[item] for item in range(manifest.items)]


@pytest.mark.parametrize("more", [{}, PARTITIONS], ids=["one partition", "several"])
@pytest.mark.parametrize("split", SPLITS)
def test_activity_is_the_events_of_each_item_and_bucket(tmp_path: Path, split: str, more: dict[str, int]) -> None:
    """Of all items, whether training knows them or not."""
    events, items = random_log(1, "string")
    out, manifest = rarely_known(tmp_path, split, (events, items), more)
    index = {row["value"]: row["index"] for row in pq.read_table(out / "vocab/item.parquet").to_pylist()}
    total, training = (
        Counter((index[row["item_id"]], row["timestamp"] // BUCKET) for row in rows)
        for rows in (events, split_reference(config_for(tmp_path, split), events)[0])
    )
    assert any(item >= manifest.items for item, _ in total)
    found = np.concatenate([np.stack(part) for part in read_activity(str(out))], axis=1)
    assert found.dtype == np.int64
    assert [tuple(column) for column in found.T.tolist()] == [
        (*pair, training[pair], count) for pair, count in sorted(total.items())
    ]


@pytest.mark.parametrize("more", [{}, PARTITIONS], ids=["one partition", "several"])
@pytest.mark.parametrize("split", SPLITS)
def test_successions_are_all_pairs_of_a_users_events(tmp_path: Path, split: str, more: dict[str, int]) -> None:
    """Of all items, whether training knows them or not; those of training are told."""
    out, manifest = rarely_known(tmp_path, split, random_log(1, "string"), more)
    whole = [row for name in ("test", "rest") for row in read_rows(out, manifest, name)]
    training = Counter(pair for row in read_rows(out, manifest, "train") for pair in steps_of(row))
    every = Counter(pair for row in whole for pair in steps_of(row))
    assert any(before >= manifest.items for before, *_ in every)
    parts = np.concatenate([np.stack(part) for part in read_successions(str(out))], axis=1)
    assert parts.dtype == np.int64
    found = [tuple(column) for column in parts.T.tolist()]
    assert [pair[:2] for pair in found] == sorted(pair[:2] for pair in found)
    assert Counter(pair[:3] for pair in found) == every
    assert Counter(pair[:3] for pair in found if pair[3]) == training


@pytest.mark.parametrize("total", [False, True])
def test_the_newest_successions_are_those_before_the_request(tmp_path: Path, total: bool) -> None:
    out, manifest = rarely_known(tmp_path, "leave_one_out", random_log(2, "string"), {})
    pairs = [
        (before, time, after)
        for name in (("test", "rest") if total else ("train",))
        for row in read_rows(out, manifest, name)
        for before, time, after in steps_of(row)
    ]
    successions = Successions.load(str(out), manifest.catalogue, total)
    item_Q = np.repeat(np.arange(manifest.catalogue), 3)
    times = np.array(sorted(time for _, time, _ in pairs))
    until_Q = np.random.default_rng(0).choice(times, len(item_Q))
    until_Q[::5] = times[-1] + 1
    after_QR, time_QR = successions.newest(item_Q, until_Q, 4)
    longest = 0
    for item, until, after_R, time_R in zip(item_Q, until_Q, after_QR.tolist(), time_QR.tolist(), strict=True):
        known = sorted(
            ((time, after) for before, time, after in pairs if before == item and time < until), reverse=True
        )
        longest = max(longest, len(known))
        assert time_R == [*(time for time, _ in known[:4]), *[0] * (4 - len(known))]
        assert after_R[len(known) :] == [0] * max(4 - len(known), 0)
        if len({time for time, _ in known[:5]}) == len(known[:5]):  # of equal times any comes first
            assert after_R == [*(after for _, after in known[:4]), *[0] * (4 - len(known))]
    assert longest > 4
    assert successions.newest(item_Q[:0], until_Q[:0], 4)[0].shape == (0, 0)


@pytest.mark.parametrize("values", [5, 2**20])
def test_what_is_counted_by_a_value_is_summed_in_order(values: int) -> None:
    """As one number, or, where that has no room, by three keys."""
    random = np.random.default_rng(0)
    drawn = {"item": (2, 50), "bucket": (-3, 5000), "value": (0, values), "training": (0, 2), "total": (1, 2)}
    columns = {name: np.tile(random.integers(low, high, 10_000), 2) for name, (low, high) in drawn.items()}
    columns["value"][:3] = values - 1
    expected: Counter[tuple[int, ...]] = Counter()
    training: Counter[tuple[int, ...]] = Counter()
    for item, bucket, value, own, total in zip(*(column.tolist() for column in columns.values()), strict=True):
        expected[item, bucket, value] += total
        training[item, bucket, value] += own
    found = summed_by(pl.DataFrame(columns))
    assert found.columns == list(drawn)
    assert found.rows() == [(*key, training[key], count) for key, count in sorted(expected.items())]
    assert len(expected) < 20_000


def test_data_without_counts_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"transitions: no such folder.*intentrec prepare"):
        next(read_transitions(str(tmp_path)))
    with pytest.raises(InputError, match=r"activity: no such folder.*intentrec prepare"):
        next(read_activity(str(tmp_path)))
    with pytest.raises(InputError, match=r"successions: no such folder.*intentrec prepare"):
        next(read_successions(str(tmp_path)))


def refused(config: DataConfig, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        prepare(config, str(folder / "out"), lambda _: None)
    assert not (folder / "out").exists()
    return str(caught.value)


ROWS = [(user, item, 10 * user + item) for user in range(4) for item in range(5)]


def test_no_item_left_is_refused(tmp_path: Path) -> None:
    config = simple_log(tmp_path, ROWS, min_item_count=100_000)
    assert refused(config, tmp_path) == "no item has 100000 training events (data.min_item_count)"


def test_an_item_table_of_other_items_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [70, 71], "genre": ["x", "y"]}), tmp_path / "items.parquet")
    config = simple_log(
        tmp_path, ROWS, items=str(tmp_path / "items.parquet"), features=[{"name": "genre", "of": "item"}]
    )
    message = refused(config, tmp_path)
    for part in ("items.parquet", "'item_id'", "none of the 5 items", "events.parquet", "data.items"):
        assert part in message


def test_an_intent_without_a_value_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [0, 1], "genre": pa.nulls(2, pa.string())}), tmp_path / "items.parquet")
    genre = {"name": "genre", "of": "item", "intent": True}
    config = simple_log(tmp_path, ROWS, items=str(tmp_path / "items.parquet"), features=[genre])
    assert refused(config, tmp_path).startswith("intent 'genre' has no value in the training data")


def warnings(config: DataConfig, folder: Path) -> list[str]:
    """As the manifest has them; the log has the same."""
    lines: list[str] = []
    manifest = prepare(config, str(folder / "out"), lines.append)
    assert [line for line in lines if line.startswith("warning: ")] == [
        f"warning: {text}" for text in manifest.warnings
    ]
    return manifest.warnings


SOUND = [(user, (user + place) % 5, 10 * user + place) for user in range(6) for place in range(6)]


def test_a_sound_log_has_no_warning(tmp_path: Path) -> None:
    assert warnings(simple_log(tmp_path, SOUND), tmp_path) == []


def test_targets_that_training_never_saw_are_told(tmp_path: Path) -> None:
    """The last item is new to four of six, the one before it to two."""
    new = {(user, 5) for user in range(4)} | {(user, 4) for user in range(2)}
    rows = [(user, 90 if (user, hour % 10) in new else item, hour) for user, item, hour in SOUND]
    test = "test targets that are items that training never saw"
    found = warnings(simple_log(tmp_path, rows), tmp_path)
    assert found == ["most test targets (4 of 6) are items that training never saw"]
    lines: list[str] = []
    prepare(simple_log(tmp_path, rows), str(tmp_path / "again"), lines.append)
    assert f"2 {test.replace('test', 'validation', 1)}, 4 {test}" in lines[-1]


def test_targets_below_min_item_count_are_told(tmp_path: Path) -> None:
    found = warnings(simple_log(tmp_path, [*ROWS, (9, 3, 0), (9, 3, 1), (9, 3, 2)], min_item_count=4), tmp_path)
    assert found == [
        "most validation targets (5 of 5) are items that training saw less than 4 times (data.min_item_count)",
        "most test targets (5 of 5) are items that training saw less than 4 times (data.min_item_count)",
    ]


def test_events_without_attributes_and_intents_of_one_label_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [0, 1], "genre": ["x", None]}), tmp_path / "items.parquet")
    genre = {"name": "genre", "of": "item", "intent": True}
    config = simple_log(tmp_path, SOUND, items=str(tmp_path / "items.parquet"), features=[genre])
    lacking = sum(item > 1 for _, item, _ in SOUND)
    assert warnings(config, tmp_path) == [
        f"most events ({lacking} of {len(SOUND)}) have no attributes: the item table lacks their item",
        "intent 'genre' has one label only among the training targets: there is nothing to predict",
    ]
    lines: list[str] = []
    prepare(config, str(tmp_path / "again"), lines.append)
    assert f"{lacking} events whose item the item table lacks" in lines[-1]
