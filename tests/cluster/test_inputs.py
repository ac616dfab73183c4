"""Odd and bad inputs through the command line: each either works or gives the one clear sentence."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import main
from tests.cluster.conftest import shop_config, shop_log

Table = dict[str, list]
QUICK = ["train.epochs=1", "models={intentrec: {kind: intentrec, window: 1h}}", "evaluate.resamples=100", "--no-ray"]


def shop_with(tmp_path: Path, change: Callable[[Table], Table]) -> Path:
    rows = shop_log(tmp_path, users=12)
    pq.write_table(pa.table(change(rows)), tmp_path / "clicks.parquet")
    return shop_config(tmp_path)


def counts(config: Path) -> dict[str, int]:
    return json.loads((config.parent / "runs" / "shop" / "data" / "manifest.json").read_text())["counts"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    sentence = lines[-1]
    assert sentence.startswith("intentrec: ")
    for word in words:
        assert word in sentence
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["unknown key 'train.epoch'", "epochs"]),
        ("models.intentrec.widnow=1h", ["widnow", "window"]),
        ("train.epochs=many", ["train.epochs", "'many'"]),
        ("train.epochs=0", ["train.epochs", "greater than or equal to 1"]),
        ("cluster.cpus_per_worker=.inf", ["cluster.cpus_per_worker", "finite number"]),
        ("train.learning_rate=.nan", ["train.learning_rate", "finite number"]),
        ("data.split.kind=random", ["data.split.kind", "leave_one_out", "'random'"]),
        ("models.intentrec.train={tables: {dimension: 3}}", ["dimension"]),
        ("models.intentrec.heads=3", ["models.intentrec.heads", "3", "train.tables.dimension", "16"]),
        ("models.intentrec.window=10", ["models.intentrec.window", "10"]),
        ("data.features.0.kind=colour", ["data.features[0].kind", "'colour'", "category"]),
        ("train.epochs", ["key.sub=value"]),
        ("name=a/b", ["name", "'a/b'"]),
        ("models.x={kind: gru4rec}", ["models.x", "gru4rec", "sasrec"]),
        ("models.intentrec.knows=[past]", ["models.intentrec.knows[0]", "'past'", "'history'"]),
        ("models.intentrec.moments={step: 1m}", ["models.intentrec.moments.step", "multiple of 5m", "'1m'"]),
        ("recommend={moment: 2026-01-01, requests: r}", ["recommend.moment", "goes without requests"]),
        ("recommend={requests: nowhere}", ["nowhere", "no such file"]),
    ],
)
def test_a_bad_config_is_refused_with_the_key(
    override: str, words: list[str], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(shop), override]) == 2
    refused(capsys, *words)


def test_requests_that_can_not_be_answered_are_refused_before_anything_is_trained(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = shop.parent / "asked.parquet"
    pq.write_table(pa.table({"customer": ["c001", "c001"], "at": [1, 2]}), asked)
    assert main(["run", str(shop), f"recommend={{requests: {asked}}}", "--no-ray"]) == 2
    refused(capsys, "asked.parquet", "'customer'", "'c001' in 2 rows", "takes one")
    assert not (shop.parent / "runs" / "shop" / "models").exists()


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "configs/nowhere.yaml"]) == 2
    refused(capsys, "configs/nowhere.yaml")


def without(column: str) -> Callable[[Table], Table]:
    return lambda rows: {name: values for name, values in rows.items() if name != column}


def with_value(column: str, row: int, value: object) -> Callable[[Table], Table]:
    return lambda rows: rows | {column: [value if n == row else old for n, old in enumerate(rows[column])]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("sku"), ["clicks.parquet", "sku", "customer"]),
        (without("what"), ["clicks.parquet", "what"]),
        (with_value("customer", 7, None), ["clicks.parquet", "customer", "no value", "row 7"]),
        (with_value("sku", 7, None), ["clicks.parquet", "sku", "no value", "row 7"]),
        (with_value("at", 7, int(time.time()) + 90 * 86_400), ["clicks.parquet", "at", "to now", "row 7"]),
        (
            lambda rows: {name: pa.array(values[:0], pa.array(values).type) for name, values in rows.items()},
            ["no event"],
        ),
        (
            lambda rows: rows | {"sku": list(range(len(rows["sku"])))},
            ["products.parquet", "sku", "strings", "integers"],
        ),
    ],
    ids=["no item column", "no feature column", "null user", "null item", "future", "empty log", "other id type"],
)
def test_a_bad_log_is_refused_with_file_column_and_value(
    change: Callable[[Table], Table], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(shop_with(tmp_path, change)), *QUICK]) == 2
    refused(capsys, *words)


def test_an_event_of_an_unknown_item_is_kept_and_counted(tmp_path: Path) -> None:
    config = shop_with(tmp_path, with_value("sku", 0, "sku-of-another-shop"))
    assert main(["run", str(config), *QUICK]) == 0
    assert counts(config)["unknown_item_events"] == 1


def test_an_event_of_an_unknown_item_is_refused_where_the_config_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shop_with(tmp_path, with_value("sku", 0, "sku-of-another-shop"))
    assert main(["run", str(config), *QUICK, "data.unknown_items=error"]) == 2
    refused(capsys, "sku-of-another-shop")


def one_user(rows: Table) -> Table:
    first = [n for n, user in enumerate(rows["customer"]) if user == rows["customer"][0]]
    return {name: [values[n] for n in first] for name, values in rows.items()}


def test_a_log_with_one_user_works(tmp_path: Path) -> None:
    config = shop_with(tmp_path, lambda rows: {name: values * 3 for name, values in one_user(rows).items()})
    assert main(["run", str(config), *QUICK]) == 0
    assert counts(config)["users"] == 1


def test_a_history_of_one_event_is_counted_and_left_out(tmp_path: Path) -> None:
    config = shop_with(
        tmp_path,
        lambda rows: {
            "customer": [*rows["customer"], "lonely"],
            "sku": [*rows["sku"], "sku-1"],
            "at": [*rows["at"], rows["at"][0]],
            "what": [*rows["what"], "view"],
        },
    )
    assert main(["run", str(config), *QUICK]) == 0
    assert counts(config)["users_without_target"] == 1


@pytest.mark.parametrize("what", ["keep", "drop"])
def test_duplicate_events_are_kept_or_dropped_and_counted(what: str, tmp_path: Path) -> None:
    config = shop_with(tmp_path, lambda rows: {name: [*values, values[0]] for name, values in rows.items()})
    before = len(pq.read_table(tmp_path / "clicks.parquet"))
    assert main(["prepare", str(config), f"data.duplicates={what}", "--no-ray"]) == 0
    assert counts(config)["duplicates"] == 1
    assert counts(config)["events"] == before - (what == "drop")


def test_integer_ids_work(tmp_path: Path) -> None:
    config = shop_with(
        tmp_path,
        lambda rows: (
            rows | {"customer": [int(c[1:]) for c in rows["customer"]], "sku": [int(s[4:]) for s in rows["sku"]]}
        ),
    )
    products = pq.read_table(tmp_path / "products.parquet")
    numbers = pa.array([int(s[4:]) for s in products["sku"].to_pylist()])
    pq.write_table(products.set_column(0, "sku", numbers), tmp_path / "products.parquet")
    assert main(["run", str(config), *QUICK]) == 0


def test_no_ray_takes_one_worker(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(shop), "--no-ray", "--workers", "2"]) == 2
    refused(capsys, "--no-ray", "2")


def test_training_without_prepared_data_says_what_to_run(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(shop), "--no-ray"]) == 2
    refused(capsys, "manifest.json", "intentrec prepare")


def test_evaluating_without_a_checkpoint_says_what_to_run(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(shop), "--no-ray"]) == 0
    assert main(["evaluate", str(shop), "--no-ray"]) == 2
    refused(capsys, "checkpoint", "intentrec train")


def test_another_config_on_the_same_run_name_is_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(shop), *QUICK]) == 0
    assert main(["train", str(shop), *QUICK, "train.tables.dimension=32"]) == 2
    refused(capsys, "train.tables", "16", "32")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "storage"),
        (["storage=s3://bucket/runs", "data.events=clicks.parquet"], "data.events"),
        (["storage=/shared/runs", "data.items=./products"], "data.items"),
        (["storage=/shared/runs", "models.r={kind: rule, log: my/log}"], "models.r.log"),
    ],
)
def test_submitting_paths_of_this_machine_is_refused(
    overrides: list[str], key: str, shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.parent)
    shop.write_text(shop.read_text().replace(f"storage: {shop.parent}/runs", "storage: runs"))
    assert main(["submit", shop.name, "--address", "http://127.0.0.1:1", *overrides]) == 2
    refused(capsys, key, "s3://")


def test_submitting_a_config_that_does_not_travel_is_refused(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop.parent / "here").mkdir()
    monkeypatch.chdir(shop.parent / "here")
    for config in (str(shop), f"../{shop.name}"):
        assert main(["submit", config, "--address", "http://127.0.0.1:1"]) == 2
        refused(capsys, config, f"a job gets the folder {shop.parent}/here")


def damaged(config: Path) -> Path:
    """Prepare the config's log, and overwrite the middle of the last row group of its training shard."""
    assert main(["prepare", str(config), "data.row_group_interactions=40", "--no-ray"]) == 0
    (path,) = (config.parent / "runs" / "shop" / "data" / "train").glob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    column = metadata.row_group(metadata.num_row_groups - 1).column(2)
    content = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    content[end - 4 : end] = bytes(4)
    path.write_bytes(content)
    return path


def test_a_damaged_row_group_ends_the_run_or_is_set_aside_and_reported(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(shop)
    small = [*QUICK, "data.row_group_interactions=40", "train.reader.tokens=64"]
    assert main(["run", str(shop), *small]) == 2
    refused(capsys, path.name, "row group", "is damaged")
    time.sleep(1)  # TensorBoard reads files in the order of their names: the second, then a number that is no text
    assert main(["run", str(shop), *small, "train.reader.on_bad_shard=skip"]) == 0
    assert re.search(rf"warning +\d+ rows were set aside: .*{path.name}: row group", capsys.readouterr().out)
    folder = shop.parent / "runs" / "shop"
    (warning,) = json.loads((folder / "results.json").read_text())["data"]["warnings"]
    assert path.name in warning
    assert path.name in (folder / "report" / "index.html").read_text()
    events = EventAccumulator(str(folder / "models" / "intentrec" / "tensorboard"))
    events.Reload()
    assert [point.value for point in events.Scalars("data/skipped_row_groups")] == [1]
    assert events.Scalars("data/skipped_rows")[0].value == int(warning.split()[0])


def test_training_data_that_are_all_damaged_train_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(shop)
    path.write_bytes(b"nothing")
    small = [*QUICK, "data.row_group_interactions=40", "train.reader.on_bad_shard=skip"]
    assert main(["run", str(shop), *small]) == 2
    refused(capsys, "nothing to train on", path.name)


def test_requests_are_answered_for_the_users_that_the_log_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those who ask and are not in the log are counted; where it has none of them, one of their ids is told."""
    config, asked = shop_with(tmp_path, lambda rows: rows), tmp_path / "asked.parquet"
    recommend = ["recommend", str(config), f"recommend.requests={asked}", *QUICK]
    assert main(["run", str(config), *QUICK]) == 0
    at = int(time.time()) + 3600
    pq.write_table(pa.table({"customer": ["c003", "c007", "nobody"], "at": [at] * 3}), asked)
    assert main(recommend) == 0
    assert "for 2 users (left out, for the log has them not: 1)" in capsys.readouterr().out
    made = [pq.read_table(file) for file in (tmp_path / "runs/shop/recommendations").glob("*.parquet")]
    assert sorted(pa.concat_tables(made)["user"].to_pylist()) == ["c003", "c007"]
    pq.write_table(pa.table({"customer": [3, 7], "at": [at] * 2}), asked)
    assert main(recommend) == 2
    refused(capsys, "asked.parquet", "none of the 2 users in column 'customer'", "such as 3", "the log's type")
