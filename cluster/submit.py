"""Submit an `intentrec ...` command to a running Ray cluster as a Ray job, and follow it.

The job runs on the cluster's head and goes on when this process ends. The working directory travels with it, without
data, runs, environments and the files that credentials are usually in. Credentials do not travel: whatever is submitted
can be read on the cluster's dashboard and in its logs, so they belong in the cluster's own environment (a Kubernetes
Secret in ray_job.yaml), and a command or a variable that carries one is refused.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ingest.credentials import SECRET_NAME, USER_IN_URL, found_in, hidden
from ingest.errors import InputError
from ingest.storage import patiently

EXCLUDES = (
    *(".git/", ".venv/", "/data/", "/runs/", "__pycache__/", ".*_cache/", ".hypothesis/", "*.egg-info/"),
    *(".env", ".env.*", ".envrc", ".netrc", ".aws/", ".ssh/", "*.pem", "*.key", "*.p12"),
)
"""What of the working directory stays at home, in the form of .gitignore; the folder's own .gitignore counts too. The
second line has the files that credentials are usually in."""

_NETWORK_ERRORS = (RuntimeError, OSError, requests.RequestException, aiohttp.ClientError)
_PATIENCE = 120.0
"""Seconds for which a cluster that was there may be silent before the job is no longer asked for."""


def submit(command: list[str], address: str, working_dir: str | None, env: dict[str, str], follow: bool = True) -> str:
    """Run `command` as a Ray job on the cluster whose dashboard is at `address` ("http://head:8265", "head:8265").

    `working_dir` is uploaded and is the job's current folder (None: the cluster has all it needs, as in our image);
    `env` is added to the job's environment. With `follow` the job's output goes to stdout until it ends.
    Returns the job's status: "SUCCEEDED", or, without `follow`, that of this moment ("PENDING" ...).

    Raises `InputError` where the address does not answer, the job is refused, does not succeed, or would carry a
    credential. An interrupt (Ctrl-C) stops the following and not the job.
    """
    _refuse_secrets(command, env)
    client = _connect(address)
    runtime_env: dict[str, object] = {"env_vars": env}
    if working_dir is not None:
        runtime_env |= {"working_dir": working_dir, "excludes": list(EXCLUDES)}
    with _refusals(f"{_public(address)}: the job was refused"):
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_env)
    hint = f"ray job logs --address {_public(client.get_address())} --follow {job}"
    print(f"submitted {job}; its output: {hint}", flush=True)
    if not follow:
        return str(_status(client, job, address).value)
    try:
        asyncio.run(_print_output(client, job))
    except KeyboardInterrupt:
        print(f"\nno longer following; the job goes on: {hint}", flush=True)
        raise
    except _NETWORK_ERRORS as error:
        print(f"the connection to the output broke ({type(error).__name__}): {hint}", flush=True)
    status = _status(client, job, address)
    while not status.is_terminal():
        time.sleep(1)
        status = _status(client, job, address)
    if status != JobStatus.SUCCEEDED:
        message = client.get_job_info(job).message or "no reason given"
        raise InputError(f"job {job} ended as {status.value}: {hidden(' '.join(message.split()))}")
    return str(status.value)


def _status(client: JobSubmissionClient, job: str, address: str) -> JobStatus:
    """Asked again while the cluster does not answer."""
    return patiently(lambda: client.get_job_status(job), f"job {job} at {_public(address)}", _PATIENCE, _NETWORK_ERRORS)


async def _print_output(client: JobSubmissionClient, job: str) -> None:
    async for chunk in client.tail_job_logs(job):
        sys.stdout.write(hidden(chunk))
        sys.stdout.flush()


def _connect(address: str) -> JobSubmissionClient:
    """A client for the dashboard at `address`, after a probe: the client itself would wait without a limit."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    takes = "takes the address of a Ray dashboard, such as http://127.0.0.1:8265"
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise InputError(f"address {_public(address)!r}: {takes}") from None
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=10).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"address {_public(address)!r}: no Ray dashboard answers there ({reason}); {takes}") from None
    with _refusals(f"address {_public(address)!r}: not a Ray dashboard that takes jobs"):
        return JobSubmissionClient(url)


@contextmanager
def _refusals(context: str) -> Iterator[None]:
    """Ray's errors, which hold a server's traceback, as one sentence."""
    try:
        yield
    except AuthenticationError:
        takes = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
        raise InputError(f"{context}: it asks for a token that this process lacks or has wrong; {takes}") from None
    except (*_NETWORK_ERRORS, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(" \".'")]
        reason = lines[-1] if lines else type(error).__name__
        raise InputError(f"{context}: {hidden(reason)}") from None


def _refuse_secrets(command: list[str], env: dict[str, str]) -> None:
    where = "the cluster takes credentials from its own environment (a Secret in ray_job.yaml)"
    for name, value in env.items():
        if SECRET_NAME.search(name) or found_in(value):
            raise InputError(f"variable {name}: would show a credential in the cluster's logs; {where}")
    for position, argument in enumerate(command):
        if found_in(argument):
            raise InputError(f"argument {position} of the command holds a credential; {where}")


def _public(address: str) -> str:
    """`address` without a user and password."""
    return USER_IN_URL.sub("", address if "://" in address else f"http://{address}")
