"""Submitting to a real Ray head on this machine, one that asks for a token as Ray does by default."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import print_jobs
from cluster.submit import submit
from ingest.errors import InputError
from tests.cluster.conftest import AUTHENTICATION, ROOT, Head, without_ray
from tests.s3 import free_ports

SECRET = "abcdefgh-not-for-logs"

SCRIPT = """
import json, sys
from cluster.submit import submit
from ingest.errors import InputError
try:
    print("status", submit(**json.load(sys.stdin)))
except InputError as error:
    sys.exit(f"error: {error}")
"""


def submitted(
    dashboard: str,
    command: list[str],
    environment: dict[str, str] = AUTHENTICATION,
    working_dir: str | None = None,
    env: dict[str, str] | None = None,
    follow: bool = True,
) -> subprocess.CompletedProcess[str]:
    """`submit` in a process of its own: Ray reads its token settings once for each process."""
    call: dict[str, Any] = {"command": command, "address": dashboard, "working_dir": working_dir, "env": env or {}}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(call | {"follow": follow}),
        env=without_ray(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def dashboard(head: Head) -> str:
    return head.dashboard


@pytest.fixture
def working_dir(tmp_path: Path) -> str:
    """A project with a module to run, and data and an environment that must not travel."""
    (tmp_path / "hello.py").write_text(
        "import os, sys\n"
        "print('hello', os.environ['GREETING'], *sys.argv[1:])\n"
        "print('here:', sorted(name for name in os.listdir() if not name.startswith('__')))\n"
        "print('ray:', bool(os.environ.get('RAY_ADDRESS')))\n"
    )
    for name in (".venv", "data", "runs", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "big.bin").write_text("x")
    return str(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_runs_with_its_folder_and_is_followed(dashboard: str, working_dir: str) -> None:
    command = [sys.executable, "-m", "hello", "two words", "a.b=[1, 2]"]
    done = submitted(dashboard, command, working_dir=working_dir, env={"GREETING": "there"})
    assert done.returncode == 0, done.stderr
    assert "hello there two words a.b=[1, 2]" in done.stdout
    assert "here: ['hello.py']" in done.stdout
    assert "ray: True" in done.stdout
    assert "submitted raysubmit_" in done.stdout
    assert done.stdout.endswith("status SUCCEEDED\n")


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_job_is_one_sentence_and_its_output_is_shown(dashboard: str) -> None:
    done = submitted(dashboard, [sys.executable, "-c", "print('before the end'); raise SystemExit(3)"])
    assert re.search(r"^error: job raysubmit_\w+ ended as FAILED.*exit code 3.*$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert "before the end" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_is_not_followed_returns_before_its_end(dashboard: str) -> None:
    script = "import time; print('begun', flush=True); time.sleep(120)"
    done = submitted(dashboard, [sys.executable, "-c", script], follow=False)
    assert re.search(r"status (PENDING|RUNNING)$", done.stdout.strip())
    (job,) = re.findall(r"submitted (raysubmit_\w+);", done.stdout)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        follow = [sys.executable, "-m", "cluster.cli", "jobs", "follow", job, "--address", dashboard]
        following = subprocess.Popen(
            follow, env=without_ray(AUTHENTICATION), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert following.stdout is not None
        assert "begun\n" in iter(following.stdout.readline, "")
        following.send_signal(number)
        said, _ = following.communicate(timeout=60)
        assert "no longer following; the job goes on: intentrec jobs follow raysubmit_" in said
        assert following.returncode == status


@pytest.mark.ray
@pytest.mark.slow
def test_credentials_do_not_reach_the_output(dashboard: str) -> None:
    halves = f"print('key {SECRET[:9]}', end='', flush=True); time.sleep(3); print('{SECRET[9:]}, rest', end='')"
    command = [sys.executable, "-c", f"import time; {halves}"]
    done = submitted(dashboard, command, AUTHENTICATION | {"AWS_SECRET_ACCESS_KEY": SECRET})
    assert "key ***, rest" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert AUTHENTICATION["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_missing_or_wrong_token_is_refused_in_one_sentence(dashboard: str, mode: str) -> None:
    done = submitted(dashboard, ["true"], {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "wrong-token"})
    assert re.search(r"^error: .*asks for a token.*RAY_AUTH_TOKEN", done.stderr, re.MULTILINE), done.stderr
    assert "wrong-token" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_missing_folder_is_refused(dashboard: str, tmp_path: Path) -> None:
    done = submitted(dashboard, ["true"], working_dir=str(tmp_path / "nowhere"))
    assert "the job was refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("prefix", ["http://", ""])
def test_a_dead_address_is_refused_in_one_sentence(prefix: str) -> None:
    address = f"{prefix}127.0.0.1:{free_ports(1)[0]}"
    for ask in (lambda: submit(["true"], address, None, {}), lambda: print_jobs(address)):
        with pytest.raises(InputError, match="no Ray dashboard answers there") as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    ["ray://127.0.0.1:10001", "http://", "http://host:port", "auto:x", "http://a host:1", "http://me:word@host"],
)
def test_what_is_no_dashboard_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="takes the address of a Ray dashboard") as error:
        submit(["true"], address, None, {})
    assert "word" not in str(error.value)


def test_what_speaks_no_http_is_refused() -> None:
    """As Ray's own ports, which are easily mistaken for the dashboard's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(InputError, match="no Ray dashboard answers there"):
            print_jobs(f"127.0.0.1:{server.getsockname()[1]}")
        answering.join()


def test_credentials_are_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    cases: list[tuple[list[str], dict[str, str]]] = [
        (["true"], {"AWS_SECRET_ACCESS_KEY": "any"}),
        (["true"], {"HARMLESS": f"x{SECRET}"}),
        (["intentrec", "run", f"storage={SECRET}"], {}),
        (["intentrec", "run", "storage=s3://key:word@host/bucket"], {}),
    ]
    for command, env in cases:
        with pytest.raises(InputError, match="credential") as error:
            submit(command, "127.0.0.1:1", None, env)
        assert SECRET not in str(error.value)
        assert "word" not in str(error.value)


def test_an_error_does_not_show_the_password_of_an_address() -> None:
    with pytest.raises(InputError) as error:
        submit(["true"], f"http://me:password@127.0.0.1:{free_ports(1)[0]}", None, {})
    assert "password" not in str(error.value)
