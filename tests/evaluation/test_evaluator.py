"""The evaluation of several models: targets as Parquet, metrics and comparisons against plain loops over them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.workers import Worker
from evaluation.evaluation_config import RecommendConfig
from evaluation.evaluator import _facts
from evaluation.metrics import METRICS
from evaluation.ranking import CatalogueRanker, NeuralScorer
from evaluation.recommend import recommend
from evaluation.report import format_table, write_report
from evaluation.results import Evaluated, Results
from evaluation.targets import paired
from ingest.data.batch import Lists
from ingest.data.manifest import save_manifest
from ingest.errors import InputError
from tests.evaluation.scenarios import READERS, evaluated
from tests.scenarios import TwoWorkers
from tests.small import MODEL, Data, make_step, one_process
from trainer.models.registry import MomentsConfig
from trainer.progress import Progress

Key = tuple[Any, int]
MODELS = ["intentrec", "markov", "popularity"]


@pytest.fixture(scope="module")
def in_time(prepared: dict[str, str]) -> Data:
    return Data(prepared["in time"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def found(in_time: Data, folder: Path) -> Iterator[Evaluated]:
    """The evaluation on one worker; its process group stays for the tests."""
    with one_process():
        yield evaluated(in_time, folder, Worker())


def rows_of(folder: Path, model: str, workers: int = 1) -> dict[Key, dict[str, Any]]:
    """A model's targets by user and place."""
    paths = sorted((folder / f"targets-{workers}" / model).glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    by_key = {(row["user"], row["place"]): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def test_the_targets_are_the_logs_own_of_the_last_days(in_time: Data, folder: Path, found: Evaluated) -> None:
    log = pq.read_table(Path(in_time.url).parent / "events.parquet").to_pylist()
    history = defaultdict(list)
    for row in log:
        history[row["user_id"]].append(row)
    ids = set(pq.read_table(Path(in_time.url, "vocab", "item.parquet"))["value"].to_pylist()[2:])
    tested = pq.read_table(Path(in_time.url, "test"), columns=["user", "targets"]).to_pydict()
    expected = set()
    for user, targets in zip(tested["user"], tested["targets"], strict=True):
        events = sorted(history[user], key=lambda row: row["timestamp"])
        for place in range(len(events) - targets, len(events)):
            item = events[place]["item_id"]
            expected.add((user, place, events[place]["timestamp"], item if item in ids else None))
    assert max(tested["targets"]) > 3
    for model in MODELS:
        rows = rows_of(folder, model).values()
        ours = {(row["user"], row["place"], row["time"].replace(tzinfo=None), row["item"]) for row in rows}
        assert ours == expected


def test_targets_say_whether_the_item_is_had_before_and_how_common_and_whether_a_session_begins(
    in_time: Data, folder: Path, found: Evaluated
) -> None:
    history = defaultdict(list)
    for row in pq.read_table(Path(in_time.url).parent / "events.parquet").to_pylist():
        history[row["user_id"]].append(row)
    table = pq.read_table(Path(in_time.url, "items.parquet"), columns=["id", "count"]).to_pydict()
    counts = dict(zip(table["id"][2:], table["count"][2:], strict=True))
    for (user, place), row in rows_of(folder, "markov").items():
        before = sorted(history[user], key=lambda event: event["timestamp"])[:place]
        assert row["again"] == any(row["item"] == event["item_id"] for event in before)
        assert row["count"] == counts[row["item"]]
        gap = row["time"].replace(tzinfo=None) - before[-1]["timestamp"]
        assert row["new_session"] == (gap.total_seconds() > 30 * 60)


def test_segments_are_means_over_their_targets(folder: Path, found: Evaluated) -> None:
    segments = {(segment.by, segment.name): segment for segment in found.segments}
    ours = list(rows_of(folder, "intentrec").items())
    inside = {
        ("history", "10 to 19"): lambda row: 10 <= row["place"] <= 19,
        ("history", "20 to 49"): lambda row: 20 <= row["place"] <= 49,
        ("item in training", "never"): lambda row: row["count"] == 0,
        ("item in training", "10 to 99 times"): lambda row: 10 <= row["count"] <= 99,
        ("item for the user", "had before"): lambda row: row["again"],
        ("item for the user", "new"): lambda row: not row["again"],
        ("session", "begins"): lambda row: row["new_session"],
        ("intent genres", "right"): lambda row: row["hit_genres"] is True,
        ("intent genres", "wrong"): lambda row: row["hit_genres"] is False,
    }
    for key, chosen in inside.items():
        chosen_keys = [target for target, row in ours if chosen(row)]
        assert segments[key].targets == len(chosen_keys) > 0
        assert segments[key].versus == {}
        for model in MODELS:
            rows = rows_of(folder, model)
            gains = [1 / rank for rank in (rows[target]["rank"] for target in chosen_keys) if rank]
            assert segments[key].values[model] == pytest.approx(math.fsum(gains) / len(chosen_keys))
    for by in ("history", "item in training", "item for the user", "session"):
        assert sum(segment.targets for segment in found.segments if segment.by == by) == len(ours)


def test_ranks_and_hits_are_those_of_one_target_at_a_time(in_time: Data, folder: Path, found: Evaluated) -> None:
    """Another batch size, and the labels and the likeliest label of each target by hand."""
    scorer = NeuralScorer(make_step(in_time.manifest))
    ranker = CatalogueRanker(scorer, in_time.manifest.items, in_time.manifest.catalogue, Worker(), False)
    rows = rows_of(folder, "intentrec")
    seen = 0
    for batch, _ in in_time.reader("test", evaluate=True, tokens=1).epoch(0):
        prediction = scorer.predict(batch)
        ranks = ranker.ranks(prediction.query, batch.target_Q, None)
        assert batch.target_place_Q is not None
        for q, (row, place) in enumerate(zip(batch.row_Q.tolist(), batch.target_place_Q.tolist(), strict=True)):
            ours = rows[batch.users[row], place]
            seen += 1
            assert ours["rank"] == int(ranks[q])
            for name, logits in prediction.intents.items():
                label = batch.labels[name]
                offsets = np.cumsum([0, *label.lengths.tolist()]) if isinstance(label, Lists) else None
                true = [int(label[q])] if offsets is None else label.values[offsets[q] : offsets[q + 1]].tolist()
                known = [index for index in true if index >= 2]
                assert ours[f"hit_{name}"] == ((int(logits[q].argmax()) + 2 in known) if known else None)
    assert seen == len(rows) == found.protocol.targets


def test_metrics_and_intents_are_means_over_the_written_targets(in_time: Data, folder: Path, found: Evaluated) -> None:
    for model in MODELS:
        rows = list(rows_of(folder, model).values())
        ranks = [row["rank"] for row in rows]
        metrics = found.models[model].metrics
        assert list(metrics) == list(METRICS)
        assert metrics["HR@10"] == sum(0 < rank <= 10 for rank in ranks) / len(ranks)
        assert metrics["MRR"] == pytest.approx(math.fsum(1 / rank for rank in ranks if rank) / len(ranks), rel=1e-14)
        for name, accuracy in found.models[model].intents.items():
            hits = [row[f"hit_{name}"] for row in rows if row[f"hit_{name}"] is not None]
            assert accuracy == sum(hits) / len(hits)
    known = pq.read_table(Path(in_time.url, "vocab", "item.parquet"))["value"].to_pylist()[2 : in_time.manifest.items]
    assert found.protocol.unknown_targets == sum(row["item"] not in known for row in rows) > 0
    assert found.models["intentrec"].intents.keys() == found.majority.keys()
    for name, accuracy in found.majority.items():
        assert found.simple["majority label"][name].accuracy == accuracy
        assert found.models["intentrec"].quality[name].accuracy == found.models["intentrec"].intents[name]


def test_models_whose_readers_have_other_orders_are_paired_by_user_and_target(
    in_time: Data, folder: Path, found: Evaluated
) -> None:
    """Against drawing users one by one, and swapping them, with the pairs put together in dicts."""
    orders = []
    for model in MODELS:
        batches = [batch for batch, _ in in_time.reader("test", evaluate=True, **READERS[model]).epoch(0)]
        orders.append([(b.users[r], t) for b in batches for r, t in zip(b.row_Q.tolist(), b.target_Q.tolist())])  # noqa: B905
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    ours = rows_of(folder, "intentrec")
    random = np.random.default_rng(0)
    for other in MODELS[1:]:
        theirs = rows_of(folder, other)
        sums: dict[Any, list[float]] = defaultdict(list)
        for key, row in ours.items():
            first, second = (1 / rank if rank else 0.0 for rank in (row["rank"], theirs[key]["rank"]))
            sums[key[0]].append(first - second)
        groups = [(math.fsum(values), len(values)) for values in sums.values()]
        drawn = np.array(groups)[random.integers(0, len(groups), (20_000, len(groups)))]
        means = drawn[:, :, 0].sum(axis=1) / drawn[:, :, 1].sum(axis=1)
        signs = random.integers(0, 2, (20_000, len(groups))) * 2 - 1
        total = math.fsum(value for value, _ in groups)
        row = found.models["intentrec"].versus[other]
        assert row.difference == pytest.approx(total / len(ours), rel=1e-12)
        assert [row.low, row.high] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=0.004)
        p = (np.abs(signs @ np.array([value for value, _ in groups])) >= abs(total) - 1e-12).mean()
        assert row.p == pytest.approx(p, abs=0.02)


def test_two_workers_find_what_one_does(folder: Path, shared: Path, two_workers: TwoWorkers, found: Evaluated) -> None:
    first, second = two_workers.result("evaluated")
    assert first.models["intentrec"].versus.keys() == second.models["intentrec"].versus.keys() == set(MODELS[1:])
    for model in MODELS:
        assert rows_of(shared, model, workers=2) == rows_of(folder, model)
        assert len(list((shared / "targets-2" / model).iterdir())) == 2
        assert first.models[model].metrics == found.models[model].metrics
        assert first.models[model].intents == found.models[model].intents
        for name, quality in found.models[model].quality.items():
            ours = first.models[model].quality[name]
            assert (ours.macro_f1, ours.targets) == (quality.macro_f1, quality.targets)
            assert ours.log_loss == pytest.approx(quality.log_loss, rel=1e-6)
            assert ours.calibration_error == pytest.approx(quality.calibration_error, rel=1e-4)
    for other, row in first.models["intentrec"].versus.items():
        reference = found.models["intentrec"].versus[other]
        assert row.difference == pytest.approx(reference.difference, rel=1e-12)
        assert [row.low, row.high, row.p] == pytest.approx([reference.low, reference.high, reference.p], rel=1e-9)
    for latency in (model.latency for each in (first, found) for model in each.models.values()):
        assert latency is not None
        assert latency.request > 0
        assert latency.users_per_second > 0
    assert first.protocol == found.protocol
    assert first.majority == found.majority
    assert first.simple == found.simple
    for one, two in zip(found.segments, first.segments, strict=True):
        assert (one.by, one.name, one.targets) == (two.by, two.name, two.targets)
        assert one.values == pytest.approx(two.values, rel=1e-12)
    assert found.example is not None
    assert first.example is not None
    assert second.example == first.example


def test_an_evaluation_that_is_repeated_replaces_the_targets(in_time: Data, tmp_path: Path, found: Evaluated) -> None:
    stale = tmp_path / "targets-1" / "markov" / "part-00007.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an evaluation on more workers")
    untimed = evaluated(in_time, tmp_path, Worker(), {"timing": False})
    assert all(model.latency is None for model in untimed.models.values())
    assert [path.name for path in stale.parent.iterdir()] == ["part-00000.parquet"]


@pytest.fixture
def nobody_tested(in_time: Data, tmp_path: Path) -> Data:
    """A data set none of whose users has a test target."""
    shutil.copytree(in_time.url, tmp_path / "data")
    manifest = in_time.manifest
    save_manifest(manifest.model_copy(update={"shards": manifest.shards | {"test": []}}), str(tmp_path / "data"))
    return Data(str(tmp_path / "data"))


def test_an_empty_test_split_is_told_and_others_still_get_recommendations(
    nobody_tested: Data, found: Evaluated
) -> None:
    folder = Path(nobody_tested.url).parent
    with pytest.raises(InputError, match="data: no user has a test target"):
        evaluated(nobody_tested, folder, Worker())
    readers = [nobody_tested.reader(split, after_last=True) for split in ("test", "rest")]
    scorer = NeuralScorer(make_step(nobody_tested.manifest))
    users = recommend(scorer, readers, Worker(), RecommendConfig(), False, str(folder / "recommended"))
    assert users == sum(shard.rows for shard in nobody_tested.manifest.shards["rest"]) > 0


def change_targets(folder: Path, change: Callable[[list[pa.Table]], None]) -> str:
    """Changes the row groups of one model's file; the folder of all models' targets."""
    path = folder / "targets-1" / "popularity" / "part-00000.parquet"
    whole = pq.ParquetFile(path)
    groups = [whole.read_row_group(group) for group in range(whole.num_row_groups)]
    assert len(groups) > 1
    change(groups)
    with pq.ParquetWriter(path, whole.schema_arrow) as writer:
        for group in groups:
            writer.write_table(group.cast(whole.schema_arrow))
    return str(folder / "targets-1")


def test_rows_in_another_order_are_paired_by_user_and_place(folder: Path, tmp_path: Path, found: Evaluated) -> None:
    def turn_round(groups: list[pa.Table]) -> None:
        groups[:] = [group.take(np.arange(len(group))[::-1]) for group in groups]

    shutil.copytree(folder / "targets-1", tmp_path / "targets-1")
    before = list(paired(str(tmp_path / "targets-1"), MODELS, Worker()))
    after = list(paired(change_targets(tmp_path, turn_round), MODELS, Worker()))
    for (users, ranks, _), (same_users, same_ranks, _) in zip(before, after, strict=True):
        np.testing.assert_array_equal(users, same_users)
        for model in MODELS:
            np.testing.assert_array_equal(ranks[model], same_ranks[model])


@pytest.mark.parametrize("change", ["a target less", "a row group less", "another user"])
def test_other_targets_are_refused(folder: Path, tmp_path: Path, found: Evaluated, change: str) -> None:
    def change_groups(groups: list[pa.Table]) -> None:
        if change == "a target less":
            groups[0] = groups[0].slice(1)
        elif change == "another user":
            groups[0] = groups[0].set_column(0, "user", [[-1, *groups[0]["user"].to_pylist()[1:]]])
        else:
            groups.pop()

    shutil.copytree(folder / "targets-1", tmp_path / "targets-1")
    url = change_targets(tmp_path, change_groups)
    with pytest.raises(InputError, match=r"popularity/part-00000.parquet: holds other targets"):
        list(paired(url, MODELS, Worker()))


@pytest.mark.parametrize("part", ["recent", "transitions", "history"])
def test_what_counts_up_to_the_request_is_called_live(part: str, in_time: Data, found: Evaluated) -> None:
    for live in (True, False):
        model = MODEL.model_copy(update={"knows": [part], "moments": MomentsConfig(live=live)})
        scorer = NeuralScorer(make_step(in_time.manifest, model=model, known=in_time.known))
        assert _facts(model, scorer, Progress())["live"] is (live and part != "history")


def test_a_metric_of_ones_own_is_counted_shown_and_compared_by(in_time: Data, tmp_path: Path, found: Evaluated) -> None:
    before = dict(METRICS)
    try:
        from tests.evaluation.log_rank import NAME

        ours = evaluated(in_time, tmp_path, Worker(), {"metric": NAME})
        results = Results(name="toy", created="now", **ours.model_dump(exclude={"warnings"}))
        write_report(results, str(tmp_path))
        written = json.loads((tmp_path / "results.json").read_text())["models"]
        for model in MODELS:
            ranks = [row["rank"] for row in rows_of(tmp_path, model).values()]
            expected = math.fsum(1 / (1 + math.log(rank)) for rank in ranks if rank) / len(ranks)
            assert written[model]["metrics"][NAME] == pytest.approx(expected)
            assert f"{expected:.4f}" in format_table(results)
        assert re.search(rf"^model .* MRR +{NAME}$", format_table(results), re.MULTILINE)
        for other, row in written["intentrec"]["versus"].items():
            values = [written[model]["metrics"][NAME] for model in ("intentrec", other)]
            assert row["metric"] == NAME
            assert row["difference"] == pytest.approx(values[0] - values[1])
    finally:
        METRICS.clear()
        METRICS.update(before)
