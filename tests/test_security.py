"""What SECURITY.md promises of code, paths and ports, each tried to be broken (credentials: test_credentials.py)."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.config import ClusterConfig, Config
from cluster.launch import QUIET, TIMES, ray_cluster
from evaluation.vocabulary import values
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import BEGUN, WORK, fingerprint_of, prepare, work_name
from ingest.prepare.survey import survey_files
from ingest.raw.files import find_files
from ingest.settings import load_settings
from ingest.storage import join, write_text
from tests.malice import malicious
from tests.small import Data
from tests.test_structure import ROOT, modules
from trainer.checked_json import write_checked
from trainer.pieces import StoredPieces
from trainer.progress import VERSION, Markers, Progress

RUNS_CODE = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "subprocess"),
    *("eval", "exec", "__import__", "allow_pickle"),
    *("torch.load", "torch.save", "np.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load", "os.system"),
    *(".read_pickle", ".deserialize", ".extractall", ".popen", "Tuner.restore", "ray.tune.Tuner.restore"),
}
"""What no module of the product uses."""
IMPORT_BY_NAME = {
    "ingest.registry": "the built-in kinds",
    "ingest.prepare.tasks": "the driver's extensions",
    "cluster.config": "the config's extensions",
    "cluster.entry": "the driver's work",
}
"""Modules that import others by name, and whose names those are: never of what is stored."""


def used(module: str) -> set[str]:
    """The names that a module uses: `name` of its own, of an import or of a call's argument, `.name` of anything."""
    found = set[str]()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(node.module.split("."), *((alias.name, f"{node.module}.{alias.name}") for alias in node.names))
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found |= {f".{node.attr}", ast.unparse(node)}
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
    return found


def test_no_module_uses_what_runs_code_that_it_reads() -> None:
    names = {module: used(module) for module in modules()}
    found = {module: names[module] & RUNS_CODE for module in names if names[module] & RUNS_CODE}
    assert found == {}, "a checkpoint, a data set or a log could run code"
    by_name = {module for module in names if names[module] & {"import_module", ".import_module"}}
    assert by_name == set(IMPORT_BY_NAME)
    assert {module for module in names if "yaml.load" in names[module]} == {"ingest.settings"}, "with a safe loader"


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system"])
@pytest.mark.parametrize("place", ["file", "override"])
def test_a_config_runs_nothing_but_its_extensions(tag: str, place: str, tmp_path: Path) -> None:
    file, evil = tmp_path / "c.yaml", f"{tag} [{tmp_path / 'code-has-run'}]"
    file.write_text(f"name: {evil}\n" if place == "file" else "name: x\n")
    with pytest.raises(InputError, match="could not determine a constructor"):
        load_settings(Config, file, [f"storage={evil}"] if place == "override" else [])
    assert not (tmp_path / "code-has-run").exists()


@pytest.fixture
def copied(prepared: dict[str, str], tmp_path: Path) -> Path:
    """The small prepared data set, which a test may change."""
    return Path(shutil.copytree(prepared["data"], tmp_path / "run" / "data"))


def read_all(folder: Path) -> None:
    """All that training and the report read of a prepared data set."""
    data = Data(str(folder))
    for split in ("train", "validation", "test"):
        for _ in data.reader(split).rows():
            pass
    for name in ("item", *(feature.name for feature in data.manifest.features if not feature.is_number)):
        values(str(folder), name)


@pytest.mark.parametrize("pattern", ["manifest.json", "items.parquet", "vocab/action.parquet", "train/*", "test/*"])
def test_a_pickle_in_the_place_of_prepared_data_is_not_run(pattern: str, copied: Path, tmp_path: Path) -> None:
    proof = tmp_path / "code-has-run"
    for file in copied.glob(pattern):
        file.write_bytes(malicious(proof).ljust(file.stat().st_size, b"\0"))
    with pytest.raises((ValueError, pa.ArrowException)):
        read_all(copied)
    assert not proof.exists()


def poison(source: Path, target: Path, proof: Path) -> None:
    """The same file with pickles where old releases of Arrow have unpickled a column's type, and where pandas looks."""
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": malicious(proof)}
    whole = pq.ParquetFile(source)
    groups = [whole.read_row_group(group) for group in range(whole.num_row_groups)]
    fields = [field.with_metadata((field.metadata or {}) | kind) for field in whole.schema_arrow]
    schema = pa.schema(fields, (whole.schema_arrow.metadata or {}) | {b"pandas": malicious(proof)})
    with pq.ParquetWriter(target, schema) as writer:
        for group in groups:
            writer.write_table(group.cast(schema))


def test_a_pickle_in_the_metadata_of_parquet_is_not_run(prepared: dict[str, str], copied: Path, tmp_path: Path) -> None:
    proof = tmp_path / "code-has-run"
    for file in copied.rglob("*.parquet"):
        poison(file, file, proof)
    read_all(copied)
    log = Path(prepared["data"]).parent
    for name in ("events", "items"):
        poison(log / f"{name}.parquet", tmp_path / f"{name}.parquet", proof)
    config = {"events": f"{tmp_path}/events.parquet", "items": f"{tmp_path}/items.parquet", "features": []}
    prepare(DataConfig.model_validate(config), str(tmp_path / "again"), lambda _: None)
    assert not proof.exists()
    stored = pq.read_schema(tmp_path / "events.parquet").field(0).metadata[b"ARROW:extension:metadata"]
    pickle.loads(stored)
    assert proof.exists(), "the pickle is there, and would have done it"


LEAVES = ["..", "../x", "x/../../y", "/../x", "x/.."]


@pytest.mark.parametrize("url", ["runs/demo", "/runs/demo", "s3://runs/demo"])
@pytest.mark.parametrize("part", LEAVES)
def test_no_part_of_a_path_leads_out_of_its_folder(url: str, part: str) -> None:
    with pytest.raises(InputError, match=r"would lead out of this folder"):
        join(url, "data", part)


@pytest.mark.parametrize(
    ("part", "path"), [("/etc/passwd", "a/etc/passwd"), ("s3://b/c", "a/s3://b/c"), ("..x", "a/..x")]
)
def test_an_absolute_part_of_a_path_stays_below_its_folder(part: str, path: str) -> None:
    assert join("a", part) == path


def changed(copied: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = copied / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_shard_outside_the_data_is_not_read(copied: Path) -> None:
    """It is a sound one: only its place is wrong."""

    def outside(content: dict[str, Any]) -> None:
        shard = content["shards"]["train"][0]
        (copied / shard["path"]).rename(copied.parent / "outside.parquet")
        shard["path"] = "../outside.parquet"

    changed(copied, outside)
    with pytest.raises(InputError, match=r"data: '\.\./outside\.parquet' would lead out of this folder"):
        read_all(copied)


def test_a_vocabulary_outside_the_data_is_not_read(copied: Path) -> None:
    def outside(content: dict[str, Any]) -> None:
        content["features"][0]["name"] = "../../outside"

    shutil.copy(copied / "vocab/action.parquet", copied.parent / "outside.parquet")
    changed(copied, outside)
    with pytest.raises(InputError, match="would lead out of this folder"):
        values(str(copied), json.loads((copied / "manifest.json").read_text())["features"][0]["name"])


@pytest.mark.parametrize("forged", ["url", "type"])
def test_what_an_interrupted_prepare_has_left_names_nothing_but_the_log(
    forged: str, prepared: dict[str, str], tmp_path: Path
) -> None:
    """Neither a file elsewhere, nor, as the type of a column, something of Polars that would be called."""
    log = Path(prepared["data"]).parent
    config = DataConfig(events=str(log / "events.parquet"))
    survey = survey_files(config, [str(log / "events.parquet")])
    if forged == "url":
        survey["files"][0]["url"] = str(shutil.copy(log / "events.parquet", tmp_path / "elsewhere.parquet"))
    else:
        survey["files"][0]["types"]["item"] = "show_versions"
    fingerprint = fingerprint_of(config, find_files(str(config.events), lambda _: None))
    work = tmp_path / "data" / WORK / work_name(config, str(tmp_path / "data"), fingerprint)
    write_text(str(work / "survey" / "000000.json"), json.dumps(survey))
    write_text(str(tmp_path / "data" / BEGUN), json.dumps({"work": str(work)}))
    with pytest.raises(InputError, match="other files than the log" if forged == "url" else "is no type of a column"):
        prepare(config, str(tmp_path / "data"), lambda _: None)
    assert prepare(config, str(tmp_path / "data"), lambda _: None).counts["users"], "nothing of it is left"


def test_a_checkpoint_outside_the_models_folder_is_not_taken(tmp_path: Path) -> None:
    """Neither where best.json names one that is sound, nor where a marker names pieces elsewhere."""
    for folder in ("ours", "theirs/step-0000000001"):
        marker = {"version": VERSION, "progress": vars(Progress(step=1)), "config": {}, "pieces": []}
        write_checked(str(tmp_path / folder / "complete.json"), marker)
    markers = Markers(str(tmp_path / "ours"))
    assert Markers(str(tmp_path / "theirs")).progress("step-0000000001").step == 1
    write_checked(str(tmp_path / "ours/best.json"), {"checkpoint": "../theirs/step-0000000001"})
    best = markers.require_best("intentrec")
    for read in (markers.progress, markers.config):
        with pytest.raises(InputError, match="would lead out of this folder"):
            read(best)
    for name in ("../theirs/pieces-0a-1-0", "/pieces-0a-1-0", "pieces-0a-1-0/../x", "pieces-0a-1-0\n"):
        with pytest.raises(InputError, match="is no name of pieces"):
            StoredPieces(str(tmp_path / "ours"), [name], 1.0)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/a", ".a", "a\n", ""])
@pytest.mark.parametrize("key", ["name", "models", "data.features.0.name"])
def test_a_name_that_becomes_a_folder_or_a_file_is_a_plain_word(key: str, name: str) -> None:
    override = f"{key}={json.dumps({name: {'kind': 'popularity'}} if key == 'models' else name)}"
    with pytest.raises(InputError, match=r"name") as error:
        load_settings(Config, ROOT / "configs" / "demo.yaml", [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_cluster_of_our_own_has_no_dashboard_and_asks_for_a_token(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks for a token unless it is told otherwise; what is sent to the workers' environment is no credential."""
    import ray

    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **arguments: given.update(arguments))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with ray_cluster(ClusterConfig(address=address)):
        assert "RAY_AUTH_MODE" not in os.environ
    assert given["address"] == (address or "local")
    assert given.get("include_dashboard") is (None if address else False)
    assert "dashboard_host" not in given
    assert given["runtime_env"] == {"env_vars": QUIET | TIMES}


@pytest.mark.parametrize("manifest", ["ray_job.yaml", "ray_job_cpu.yaml"])
def test_ray_on_kubernetes_asks_for_a_token(manifest: str) -> None:
    cluster = yaml.safe_load((ROOT / manifest).read_text())["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert cluster["authOptions"] == {"mode": "token"}


def test_every_promise_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| \*\*.*\| (.*) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        for part in row.split(";"):
            file, *tests = re.findall(r"`([\w/.]+)`", part)
            source = (ROOT / "tests" / file).read_text()
            for test in tests:
                begins = f"\ndef {test.removesuffix('...')}" if test.endswith("...") else f"\ndef {test}("
                assert begins in source, test
