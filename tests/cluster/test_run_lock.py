"""The lock of a run's folder, held and wanted by real processes, on local disk and in an object store."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.run_lock import run_lock
from ingest.errors import InputError
from ingest.storage import list_names, read_text, write_text
from tests.s3 import ObjectStore

PROCESS = """
import sys, time
import cluster.run_lock
from ingest.errors import InputError
run, verb, machine, seconds, renew, expire = sys.argv[1:]
if machine:
    cluster.run_lock._machine = lambda: machine
try:
    with cluster.run_lock.run_lock(run, verb, float(renew), float(expire)):
        print("held", flush=True)
        time.sleep(float(seconds))
    print("released", flush=True)
except InputError as error:
    print(error, flush=True)
"""


def process(
    run: str, verb: str = "train", machine: str = "", seconds: float = 60, renew: float = 0.2, expire: float = 1.5
) -> subprocess.Popen[str]:
    """A process that takes the lock and holds it for `seconds`; what happens to it stands on its stdout."""
    words = [run, verb, machine, str(seconds), str(renew), str(expire)]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *words], stdout=subprocess.PIPE, text=True)


def line(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


@contextmanager
def held(*arguments: str, **options: float) -> Iterator[subprocess.Popen[str]]:
    holder = process(*arguments, **options)
    try:
        assert line(holder) == "held"
        yield holder
    finally:
        holder.send_signal(signal.SIGCONT)
        holder.kill()
        holder.wait()


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's folder."""
    if request.param == "local":
        return str(tmp_path / "run")
    store: ObjectStore = request.getfixturevalue("s3")
    store.make_bucket("locks")
    return f"s3://locks/{tmp_path.name}"


def test_the_second_is_told_who_holds_the_run_and_since_when(run: str) -> None:
    with held(run, "evaluate") as holder, pytest.raises(InputError) as told, run_lock(run, "train"):
        pass
    words = str(told.value)
    assert words.startswith(f"{run}: ")
    assert f"process {holder.pid} on " in words
    assert "`intentrec evaluate`" in words
    assert " since 20" in words


def test_a_released_run_is_free_and_keeps_one_small_file(run: str) -> None:
    for _ in range(3):
        with run_lock(run, "train"):
            pass
    (name,) = list_names(f"{run}/.lock")
    assert '"released": true' in read_text(f"{run}/.lock/{name}")


def test_a_disk_without_hard_links_has_the_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refused)
    run = str(tmp_path)
    with run_lock(run, "train"), pytest.raises(InputError, match="is being made by"), run_lock(run, "evaluate"):
        pass


def test_one_that_failed_has_released_it(run: str) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(run, "train"):
        raise ZeroDivisionError
    with run_lock(run, "train"):
        pass


def test_a_killed_holder_of_this_machine_blocks_nobody(run: str) -> None:
    with held(run) as holder:
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with run_lock(run, "train"):
            assert time.monotonic() - began < 5


def test_another_process_of_the_dead_holders_number_does_not_pass_for_it(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.run_lock._start", lambda pid: "1" if pid == os.getpid() else "")
    with run_lock(run, "train"):
        monkeypatch.setattr("cluster.run_lock._start", lambda pid: "2")
        with run_lock(run, "train"):
            pass


def test_a_holder_on_another_machine_is_refused_while_it_renews_and_replaced_once_it_does_not(run: str) -> None:
    with held(run, "train", "elsewhere") as holder:
        with pytest.raises(InputError, match="is being made by another process"), run_lock(run, "train", 0.2, 20):
            pass
        holder.kill()
        holder.wait()
        with run_lock(run, "train", 0.2, 1.5):
            pass


def test_a_holder_that_was_silent_too_long_stops_before_it_writes_more(run: str) -> None:
    with held(run, "train", "elsewhere") as silent:
        silent.send_signal(signal.SIGSTOP)
        with run_lock(run, "evaluate", 0.2, 1.5):
            silent.send_signal(signal.SIGCONT)
            words = line(silent)
    assert "was taken by another process while this one was silent: `intentrec evaluate`" in words


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_come_at_once_one_wins(run: str, dead: bool) -> None:
    if dead:
        with held(run) as holder:
            holder.kill()
            holder.wait()
    contenders = [process(run, seconds=8) for _ in range(5)]
    with ThreadPoolExecutor(len(contenders)) as threads:
        words = list(threads.map(line, contenders))
    for contender in contenders:
        contender.kill()
        contender.wait()
    assert words.count("held") == 1, words
    assert sum("is being made by another process" in word for word in words) == 4, "\n".join(words)


def test_a_bucket_that_is_not_there_is_told_and_not_made(s3: ObjectStore) -> None:
    with pytest.raises(InputError, match="can not be written"), run_lock("s3://not-there/run", "train"):
        pass
    assert not s3.filesystem().exists("not-there")


def test_a_storage_that_may_not_be_written_is_told(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("locks")
    for name, value in s3.read_only.items():
        monkeypatch.setenv(name, value)
    refused = process("s3://locks/read-only")  # a client of its own: this process's goes on with what it has
    assert "can not be written: Access Denied" in line(refused)
    assert refused.wait() == 0


def test_a_damaged_lock_is_named(run: str) -> None:
    write_text(f"{run}/.lock/000000001.json", "{")
    with pytest.raises(InputError, match=r"000000001\.json: damaged: "), run_lock(run, "train"):
        pass
