"""Credentials come from the environment and end there: in no log, manifest, report, checkpoint or TensorBoard file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.cli import main
from cluster.submit import EXCLUDES
from ingest.credentials import found_in, hidden
from ingest.s3 import PatientS3
from ingest.storage import open_filesystem
from tests.cluster.readme import ROOT
from tests.cluster.test_inputs import QUICK
from tests.s3 import ObjectStore

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SECRET = "abcdefgh-not-for-logs"
USER_URL = "s3://somebody:password-of-mine@bucket/folder"
SIGNED_URL = "https://bucket.host/clicks.parquet?X-Amz-Date=1&X-Amz-Signature=0123456789abcdef"
BAD = {
    "storage": USER_URL,
    "data.events": SIGNED_URL,
    "data.work": f"s3://{SECRET}/x",
    "cluster.address": "http://me:password-of-mine@head:8265",
    "data.passphrase": SECRET,
    "data.title": f"[{SECRET}",
}
SHOWN = (SECRET, "password-of-mine", "0123456789abcdef")


@pytest.mark.parametrize("verb", ["run", "train", "submit"])
@pytest.mark.parametrize("key", BAD)
@pytest.mark.parametrize("place", ["override", "file"])
def test_a_config_with_a_credential_is_refused_and_not_shown(
    verb: str, key: str, place: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever else is wrong with it: a key that is unknown, a value that is no YAML."""
    monkeypatch.setenv("OUR_API_KEY", SECRET)
    words = [verb, str(shop), *(["--address", "127.0.0.1:1"] if verb == "submit" else [])]
    if place == "override":
        words.append(f"{key}={BAD[key]}")
    else:
        section, _, sub = key.partition(".")
        text = f"{section}: {{{sub}: {BAD[key]}}}\n" if sub else f"{section}: {BAD[key]}\n"
        shop.write_text(shop.read_text() + text)
    assert main(words) == 2
    printed = "".join(capfd.readouterr())
    assert "credentials come from the environment alone" in printed
    assert not [word for word in SHOWN if word in printed]
    assert not (shop.parent / "runs").exists()


@pytest.mark.parametrize(
    "text", ["s3://bucket/me@example.com/x", "https://host/x?page=1", "a@b.c", "tokens", "storage: runs\nowner: a@b.c"]
)
def test_what_is_no_credential_is_taken(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "short")
    assert found_in(text) is None
    assert hidden(f"short {text}") == f"short {text}"


def test_rays_own_command_leaves_at_home_what_ours_does() -> None:
    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert tuple(line for line in lines if not line.startswith("#")) == EXCLUDES


def test_what_is_in_the_file_of_credentials_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once it has changed, as a session's are written anew; no file, or a broken one, has none."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert hidden(f"{SECRET} {file}") == f"{SECRET} {file}"
    file.write_text(f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {SECRET}\nregion = eu-west-1\n")
    assert hidden(f"{SECRET} {file} eu-west-1") == f"*** {file} eu-west-1"
    assert found_in(SECRET) == "the value of aws_secret_access_key"
    file.write_text(f"[default]\naws_session_token = {SECRET[::-1]}%\n")
    assert (hidden(SECRET), hidden(f"{SECRET[::-1]}%")) == (SECRET, "***")
    file.write_text(f"aws_session_token = {SECRET}")
    assert hidden(SECRET) == SECRET


def kept(url: str) -> dict[str, bytes]:
    """All files below the folder `url`, hidden ones and those of Ray Train, too."""
    filesystem, path = open_filesystem(url)
    return {name: filesystem.cat_file(name) for name in filesystem.find(path)}


def shows(files: dict[str, bytes], store: ObjectStore) -> list[str]:
    """The files that have a credential of the object store in them."""
    keys = [store.environment[name].encode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    return [name for name, content in files.items() if any(key in content for key in keys)]


def test_a_run_in_an_object_store_keeps_and_prints_no_credential(
    shop: Path, s3: ObjectStore, capfd: pytest.CaptureFixture[str]
) -> None:
    s3.make_bucket("secretive")
    assert main(["run", str(shop), "storage=s3://secretive/runs", "recommend={}", *QUICK]) == 0
    files = kept("s3://secretive/runs")
    names = " ".join(files)
    for part in ("manifest.json", "results.json", "report/index.html", "complete.json", "events.out.tfevents", ".lock"):
        assert part in names
    files["output"] = "".join(capfd.readouterr()).encode()
    assert b"s3://secretive/runs" in files["output"]
    assert shows(files, s3) == []


def test_a_storage_that_refuses_us_is_told_without_the_credential(
    shop: Path, s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    s3.make_bucket("secretive")
    for name, value in (("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ACCESS_KEY_ID", SECRET[::-1])):
        monkeypatch.setenv(name, value)
        PatientS3.clear_instance_cache()
        assert main(["run", str(shop), "storage=s3://secretive/refused", *QUICK]) == 2
        printed = "".join(capfd.readouterr())
        assert "s3://secretive/refused" in printed
        for secret in (SECRET, SECRET[::-1], *(os.environ[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))):
            assert secret not in printed
    PatientS3.clear_instance_cache()


@pytest.mark.ray
def test_a_run_on_ray_keeps_and_logs_no_credential(stages: str, s3: ObjectStore, ray_session: Cluster) -> None:
    """Neither in the run's folder nor in the logs of Ray, of both nodes and all workers."""
    files = kept(stages)
    assert any("/ray/" in name or "results.json" in name for name in files)
    logs = Path(ray_session.head_node.get_logs_dir_path())
    files |= {str(file): file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    assert any("worker" in name for name in files)
    assert shows(files, s3) == []


@pytest.mark.parametrize("name", [".env", ".env.local", ".envrc", ".netrc", ".aws/credentials", ".ssh/id", "a/b.pem"])
def test_a_job_does_not_take_the_files_that_credentials_are_in(name: str, tmp_path: Path) -> None:
    """By Ray's own reading of what is left out, by us and where Ray's command submits this project."""
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    (tmp_path / "hello.py").write_text("")
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SECRET)
    is_left_out = _get_excludes(tmp_path, list(EXCLUDES))
    assert is_left_out(file) or is_left_out(file.parent)
    assert not is_left_out(tmp_path / "hello.py")
    shutil.copy(ROOT / ".rayignore", tmp_path)
    (is_left_out,) = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    assert is_left_out(file) or is_left_out(file.parent)
    assert not is_left_out(tmp_path / "hello.py")
