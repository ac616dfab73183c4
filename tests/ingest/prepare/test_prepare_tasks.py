"""prepare as tasks: interrupted anywhere it goes on, a data set grows, and the bytes do not depend on who ran what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.arrow_files import arrow_filesystem
from ingest.data.manifest import Manifest
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare import pipeline
from ingest.prepare.pipeline import prepare
from ingest.prepare.tasks import Call, run_stage
from tests.ingest.prepare.prepare_reference import Row, config_for, random_log, write_log
from tests.ingest.prepare.test_prepare import MANY_PARTITIONS, contents, read_rows, read_vocabulary, simple_log
from tests.s3 import ObjectStore


class Interrupted(Exception):  # noqa: N818
    """What a run dies of in a test."""


class Breaking:
    """Runs calls in the reverse of their order, and dies in place of the call number `after`."""

    def __init__(self, after: int = 1_000_000) -> None:
        self.after = after
        self.made: list[str] = []

    def run(self, calls: Sequence[Call], description: str) -> None:
        for call in reversed(calls):
            if len(self.made) == self.after:
                raise Interrupted
            call()
            self.made.append(call.result)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, *random_log(4, "string"), "string")
    return folder


def log_config(folder: Path, **more: object) -> DataConfig:
    return config_for(folder, "leave_one_out", **MANY_PARTITIONS, **more)


def test_interrupted_after_any_call_it_goes_on_with_what_is_finished(log: Path, tmp_path: Path) -> None:
    whole = Breaking()
    prepare(log_config(log), str(tmp_path / "whole"), lambda _: None, whole)
    expected = contents(tmp_path / "whole")
    assert not any("_work" in name for name in expected)
    for after in range(0, len(whole.made), 17):
        out = tmp_path / f"stopped-after-{after}"
        first, second = Breaking(after), Breaking()
        with pytest.raises(Interrupted):
            prepare(log_config(log), str(out), lambda _: None, first)
        prepare(log_config(log), str(out), lambda _: None, second)
        assert len(first.made) + len(second.made) == len(whole.made)
        assert contents(out) == expected


def test_a_result_that_is_not_whole_is_made_again(log: Path, tmp_path: Path) -> None:
    first, second = Breaking(40), Breaking()
    with pytest.raises(Interrupted):
        prepare(log_config(log), str(tmp_path / "out"), lambda _: None, first)
    for text, result in zip(("", '{"size": ', "\0\0"), first.made[::15], strict=True):
        Path(result).write_text(text)
    prepare(log_config(log), str(tmp_path / "out"), lambda _: None, second)
    assert set(first.made) & set(second.made) == set(first.made[::15])
    prepare(log_config(log), str(tmp_path / "whole"), lambda _: None)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interrupted_again_and_again_in_a_folder_of_its_own(log: Path, tmp_path: Path) -> None:
    config = log_config(log, work=str(tmp_path / "work"))
    tries = 0
    while True:
        try:
            prepare(config, str(tmp_path / "out"), lambda _: None, Breaking(after=5))
            break
        except Interrupted:
            tries += 1
    assert tries > 5
    assert not list((tmp_path / "work").iterdir()) if (tmp_path / "work").exists() else True
    prepare(log_config(log), str(tmp_path / "whole"), lambda _: None)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupted_run_of_another_config_is_cleared_away(log: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        prepare(log_config(log), str(tmp_path / "out"), lambda _: None, Breaking(9))
    prepare(log_config(log, min_item_count=2), str(tmp_path / "out"), lambda _: None)
    assert not any("_work" in name for name in contents(tmp_path / "out"))


def test_what_was_begun_for_one_folder_counts_for_no_other(tmp_path: Path) -> None:
    """With one `data.work`: the tasks that write shards are done in the other folder alone."""
    config = small_log(tmp_path, work=str(tmp_path / "work"))
    interrupted_when_published(config, tmp_path / "one")
    for name in ("two", "one"):
        check_shards(tmp_path / name, prepare(config, str(tmp_path / name), lambda _: None))
    assert not (tmp_path / "work").exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_was_begun_counts_no_more_when_another_run_was_there(tmp_path: Path) -> None:
    """Wherever that one had its work."""
    config = small_log(tmp_path, work=str(tmp_path / "work"))
    interrupted_when_published(config, tmp_path / "out")
    split = {"kind": "point_in_time", "validation": "2h", "test": "1h"}
    other = DataConfig.model_validate(config.model_dump() | {"split": split, "work": None})
    prepare(other, str(tmp_path / "out"), lambda _: None)
    check_shards(tmp_path / "out", prepare(config, str(tmp_path / "out"), lambda _: None))
    assert not (tmp_path / "work").exists()


def small_log(folder: Path, **more: object) -> DataConfig:
    return simple_log(folder, [(user, item, user + item) for user in range(3) for item in range(5)], **more)


def interrupted_when_published(config: DataConfig, out: Path) -> None:
    """All shards are written then."""
    interrupted_when(config, out, "publish_vocabulary")


def interrupted_when(config: DataConfig, out: Path, task: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, task, interrupting)
        with pytest.raises(Interrupted):
            prepare(config, str(out), lambda _: None)


def interrupting(*_: object) -> dict[str, object]:
    raise Interrupted


def check_shards(out: Path, manifest: Manifest) -> None:
    shards = [shard for split in manifest.shards.values() for shard in split]
    assert [hashlib.sha256((out / shard.path).read_bytes()).hexdigest() for shard in shards] == [
        shard.checksum for shard in shards
    ]


def test_pieces_and_files_do_not_matter(log: Path, tmp_path: Path) -> None:
    """The same events in one file or in many, in row groups of any size."""
    config = log_config(log)
    prepare(config, str(tmp_path / "two files"), lambda _: None)
    table = pa.concat_tables([pq.read_table(path) for path in sorted((log / "events").iterdir())])
    (tmp_path / "log" / "events").mkdir(parents=True)
    for number, begin in enumerate(range(0, table.num_rows, 9)):
        pq.write_table(table[begin : begin + 9], tmp_path / f"log/events/{number:03}.parquet", row_group_size=4)
    (tmp_path / "log/items.parquet").write_bytes((log / "items.parquet").read_bytes())
    prepare(log_config(tmp_path / "log"), str(tmp_path / "many files"), lambda _: None)
    one, two = (contents(tmp_path / name) for name in ("two files", "many files"))
    one.pop("manifest.json")
    two.pop("manifest.json")
    assert one == two


def test_counts_of_many_partitions_are_put_together_by_groups(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(log_config(log), str(tmp_path / "at once"), lambda _: None)
    monkeypatch.setattr(pipeline, "PARTITIONS_A_TASK", 3)
    runner = Breaking()
    prepare(log_config(log), str(tmp_path / "by groups"), lambda _: None, runner)
    assert any("merge/features" in name for name in runner.made)
    assert any("merge/ages" in name for name in runner.made)
    assert contents(tmp_path / "at once") == contents(tmp_path / "by groups")


def test_a_wrong_value_is_named_with_its_row_in_the_file(tmp_path: Path) -> None:
    users = [1] * 40
    users[33] = None  # type: ignore[call-overload]
    times = pa.array([1_600_000_000 + i for i in range(40)])
    table = pa.table({"user_id": users, "item_id": list(range(40)), "timestamp": times})
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=7)
    config = DataConfig(events=str(tmp_path / "events.parquet"), time_unit="s", partition_events=10)
    with pytest.raises(InputError, match=r"column 'user_id' has no value in row 33"):
        prepare(config, str(tmp_path / "out"), lambda _: None)


def decoded(out: Path, config: DataConfig, split: str, manifest: object) -> list[Row]:
    """A split's rows with values in place of indices."""
    names = {"item": [value for value, _, _ in read_vocabulary(out, "item")]}
    for feature in config.features:
        if feature.of == "event" and not feature.is_number:
            names[feature.name] = [value for value, _, _ in read_vocabulary(out, feature.name)]
    rows = []
    for row in read_rows(out, manifest, split):  # type: ignore[arg-type]
        for name, values in names.items():
            nested = name == "words"
            row[name] = [sorted(values[i] for i in v) if nested else values[v] for v in row[name]]
        rows.append(row)
    return sorted(rows, key=lambda row: row["user"])


@pytest.mark.parametrize("seed", range(3))
def test_a_data_set_grows_and_keeps_its_indices(tmp_path: Path, seed: int) -> None:
    events, items = random_log(20 + seed, "int")
    half = len(events) // 2
    write_log(tmp_path, events[:half], items, "int")
    config = config_for(tmp_path, "leave_one_out", **MANY_PARTITIONS, grow=True)
    out = tmp_path / "out"
    before = prepare(config, str(out), lambda _: None)
    names = [path.stem for path in (out / "vocab").iterdir()]
    vocabularies = {name: [row[:2] for row in read_vocabulary(out, name)] for name in names}
    write_log(tmp_path / "more", [dict(row, item_id=row["item_id"] + 7) for row in events[half:]], items, "int")
    for path in (tmp_path / "more/events").iterdir():
        (tmp_path / "events" / f"new-{path.name}").write_bytes(path.read_bytes())
    after = prepare(config, str(out), lambda _: None)
    vocabularies["item"] = vocabularies["item"][: before.items]
    for name in names:
        table = read_vocabulary(out, name)[: after.items if name == "item" else None]
        assert [row[:2] for row in table][: len(vocabularies[name])] == vocabularies[name]
        new = [(-count, value) for value, _, count in table[len(vocabularies[name]) :]]
        assert new == sorted(new)
    assert after.items > before.items
    for old, new_feature in zip(before.features, after.features, strict=True):
        assert (old.edges, old.mean, old.deviation) == (new_feature.edges, new_feature.mean, new_feature.deviation)
    anew = prepare(config.model_copy(update={"grow": False}), str(tmp_path / "anew"), lambda _: None)
    kept = [
        feature
        for feature in config.features
        if not feature.is_number and feature.bins is None and feature.min_count == 1
    ]
    plain = config.model_copy(update={"features": kept})
    for split in ("train", "validation", "test", "rest"):
        grown = decoded(out, plain, split, after)
        fresh = decoded(tmp_path / "anew", plain, split, anew)
        for left, right in zip(grown, fresh, strict=True):
            for name in ("user", "targets", "time", "duration", "item", *(f.name for f in kept if f.of == "event")):
                assert left[name] == right[name]
    assert {name: after.counts[name] for name in ("events", "users")} == {
        name: anew.counts[name] for name in ("events", "users")
    }


def growing_log(folder: Path, file: str, items: str) -> DataConfig:
    """One more file of the log, whose items come often: the data set's indices would be others if it did not grow."""
    hours = 100 * len(list((folder / "events").glob("*")))
    rows = [(place % 3, item, hours + place) for place, item in enumerate(items)]
    simple_log(folder / "file", rows)
    (folder / "events").mkdir(exist_ok=True)
    (folder / "file" / "events.parquet").rename(folder / "events" / file)
    return DataConfig.model_validate({"events": str(folder / "events"), "time_unit": "ms", "grow": True})


def known_items(out: Path) -> list[str]:
    return [value for value, _, _ in read_vocabulary(out, "item")][2:]


def test_what_grows_keeps_its_indices_whatever_interrupts_it(tmp_path: Path) -> None:
    """Its content is removed then; and when the run goes on there is one more file, or a task fails for good."""
    out, config = tmp_path / "out", growing_log(tmp_path, "a.parquet", "aaabbccab" * 3)
    prepare(config, str(out), lambda _: None)
    assert known_items(out) == ["a", "b", "c"]
    growing_log(tmp_path, "b.parquet", "c" * 60)
    interrupted_when_published(config, out)
    growing_log(tmp_path, "c.parquet", "d" * 90)
    interrupted_when_published(config, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "publish_vocabulary", refusing)
        with pytest.raises(InputError, match="no more"):
            prepare(config, str(out), lambda _: None)
    prepare(config, str(out), lambda _: None)
    assert known_items(out) == ["a", "b", "c", "d"]
    assert not [path for path in out.iterdir() if path.name.startswith("_")]


def refusing(*_: object) -> dict[str, object]:
    raise InputError("there is no more")


def test_what_was_begun_without_growing_does_not_decide_that_it_does_not_grow(tmp_path: Path) -> None:
    out, config = tmp_path / "out", growing_log(tmp_path, "a.parquet", "aaabbccab" * 3)
    prepare(config, str(out), lambda _: None)
    growing_log(tmp_path, "b.parquet", "c" * 60)
    interrupted_when(config.model_copy(update={"grow": False}), out, "build_histories")
    prepare(config, str(out), lambda _: None)
    assert known_items(out) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ['"version": 0', "{"])
def test_what_can_not_be_read_does_not_grow_and_is_not_replaced_unasked(tmp_path: Path, change: str) -> None:
    out, config = tmp_path / "out", growing_log(tmp_path, "a.parquet", "aaabbccab" * 3)
    manifest = prepare(config, str(out), lambda _: None)
    text = (out / "manifest.json").read_text().replace(f'"version": {manifest.version}', change)
    (out / "manifest.json").write_text(text)
    growing_log(tmp_path, "b.parquet", "c" * 60)
    with pytest.raises(InputError, match=r"manifest\.json: .*data\.grow"):
        prepare(config, str(out), lambda _: None)
    anew = config.model_copy(update={"grow": False})
    with pytest.raises(InputError, match="by another release, and models were trained"):
        prepare(anew, str(out), lambda _: None, keep=lambda: "models were trained")
    assert (out / "manifest.json").read_text() == text
    prepare(anew, str(out), lambda _: None)
    assert known_items(out) == ["c", "a", "b"]


def test_a_data_set_with_other_features_does_not_grow(log: Path, tmp_path: Path) -> None:
    prepare(log_config(log), str(tmp_path / "out"), lambda _: None)
    config = log_config(log, grow=True)
    fewer = config.model_copy(update={"features": config.features[:3]})
    with pytest.raises(InputError, match=r"data\.grow"):
        prepare(fewer, str(tmp_path / "out"), lambda _: None)


def write_elsewhere(url: str) -> dict[str, int]:
    """A task whose process is another one: what it writes is not known to this process's client."""
    filesystem, path = arrow_filesystem(url)
    with filesystem.open_output_stream(path) as file:
        file.write(b'{"number": 7}')
    return {}


class Elsewhere:
    """Runs calls as other processes do."""

    def run(self, calls: Sequence[Call], description: str) -> None:
        for call in calls:
            write_elsewhere(call.result)


def test_results_of_other_processes_are_found_beside_older_ones(s3: ObjectStore) -> None:
    """A client that keeps listings would take what was not there when the stage began for missing."""
    s3.make_bucket("stages")
    work = "s3://stages/work"
    for results in ([7], [7, 7, 7]):
        tasks = list(range(len(results)))
        found = run_stage(Elsewhere(), work, "stage", write_elsewhere, (), tasks, "")
        assert [result["number"] for result in found] == results
