"""The jobs of a running Ray cluster, through its dashboard: which there are, what one says, and ending one.

The cluster keeps them as long as its head lives. Of what it says, this machine's credentials are not shown.
"""

from __future__ import annotations

import asyncio
import datetime
import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.termination import STATUS, received
from ingest.credentials import USER_IN_URL, hidden
from ingest.errors import InputError
from ingest.patience import patiently

NETWORK_ERRORS = (RuntimeError, OSError, requests.RequestException, aiohttp.ClientError)
T = TypeVar("T")
_PATIENCE = 120.0
"""Seconds for which a cluster that was there may be silent before the job is no longer asked for."""


def print_jobs(address: str) -> None:
    """Print the jobs that were submitted to the cluster whose dashboard is at `address`, the latest last.

    Raises `InputError`, as all of these do, where no dashboard answers there or it refuses.
    """
    client = connect(address)
    with refusals(public(address)):
        found = [job for job in client.list_jobs() if job.submission_id is not None]
    if not found:
        print(f"{public(address)}: no job was submitted since this cluster began")
    for job in sorted(found, key=lambda job: job.start_time or 0):
        print(_line(job))


def _line(job: JobDetails) -> str:
    """Its name, status, begin, how long it took until its end or now, and its command."""
    start = (job.start_time or 0) // 1000
    end = job.end_time // 1000 if job.end_time else int(time.time())
    began = datetime.datetime.fromtimestamp(start, datetime.UTC)
    took = datetime.timedelta(seconds=max(end - start, 0))
    return f"{job.submission_id}  {job.status.value:9}  {began:%Y-%m-%d %H:%M:%S} UTC  {took}  {hidden(job.entrypoint)}"


def follow_job(address: str, job: str) -> None:
    """Print the output of `job` from its begin to its end. An interrupt (Ctrl-C) stops the following and not the job.

    Raises `InputError` where there is no such job, or it does not succeed.
    """
    client = connect(address)
    _known(client, job, address)
    followed(client, job, address)


def cancel_job(address: str, job: str) -> None:
    """End `job`, and wait until it has ended."""
    client = connect(address)
    status = _known(client, job, address)
    if status.is_terminal():
        print(f"job {job} has ended before, as {status.value}")
        return
    with refusals(f"job {job} at {public(address)}"):
        client.stop_job(job)
    print(f"job {job} ended as {_end(client, job, address).value}; what it has saved stays")


def followed(client: JobSubmissionClient, job: str, address: str) -> JobStatus:
    """The status of `job` after its end, until when its output is printed. As `follow_job`."""
    hint = hint_for(client, job)
    try:
        try:
            asyncio.run(_print_output(client, job))
        except NETWORK_ERRORS as error:
            print(f"the connection to the output broke ({type(error).__name__}): {hint}", flush=True)
        status = _end(client, job, address)
    except KeyboardInterrupt:
        print(f"\nno longer following; the job goes on: {hint}", flush=True)
        raise SystemExit(STATUS if received() else 130) from None
    if status != JobStatus.SUCCEEDED:
        message = _asked(lambda: client.get_job_info(job), job, address).message or "no reason given"
        raise InputError(f"job {job} ended as {status.value}: {hidden(' '.join(message.split()))}")
    return status


def hint_for(client: JobSubmissionClient, job: str) -> str:
    """The command that follows `job`."""
    return f"intentrec jobs follow {job} --address {public(client.get_address())}"


def status_of(client: JobSubmissionClient, job: str, address: str) -> JobStatus:
    return _asked(lambda: client.get_job_status(job), job, address)


def _asked(ask: Callable[[], T], job: str, address: str) -> T:
    """Asked again while the cluster does not answer."""
    name = f"job {job} at {public(address)}"
    return patiently(ask, name, _PATIENCE, lambda error: isinstance(error, NETWORK_ERRORS))


def _end(client: JobSubmissionClient, job: str, address: str) -> JobStatus:
    status = status_of(client, job, address)
    while not status.is_terminal():
        time.sleep(1)
        status = status_of(client, job, address)
    return status


def _known(client: JobSubmissionClient, job: str, address: str) -> JobStatus:
    """The status of `job`, which the cluster has to know."""
    with refusals(f"job {job} at {public(address)}"):
        known = {each.submission_id: each.status for each in client.list_jobs()}
    if job not in known:
        raise InputError(f"job {job}: {public(address)} knows no such job; `intentrec jobs list` has those it knows")
    return known[job]


async def _print_output(client: JobSubmissionClient, job: str) -> None:
    """Whole lines, and what a bar rewrites: a credential that two chunks share would not be known as one."""
    rest = ""
    try:
        async for chunk in client.tail_job_logs(job):
            rest += chunk
            end = max(rest.rfind("\n"), rest.rfind("\r")) + 1
            sys.stdout.write(hidden(rest[:end]))
            sys.stdout.flush()
            rest = rest[end:]
    finally:
        sys.stdout.write(hidden(rest))
        sys.stdout.flush()


def connect(address: str) -> JobSubmissionClient:
    """A client for the dashboard at `address`, after a probe: the client itself would wait without a limit."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    takes = "takes the address of a Ray dashboard, such as http://127.0.0.1:8265"
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.username is not None:
            raise ValueError
    except ValueError:
        raise InputError(f"address {public(address)!r}: {takes}") from None
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=10).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"address {public(address)!r}: no Ray dashboard answers there ({reason}); {takes}") from None
    with refusals(f"address {public(address)!r}: not a Ray dashboard that takes jobs"):
        return JobSubmissionClient(url)


@contextmanager
def refusals(context: str) -> Iterator[None]:
    """Ray's errors, which hold a server's traceback, as one sentence."""
    try:
        yield
    except AuthenticationError:
        takes = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
        raise InputError(f"{context}: it asks for a token that this process lacks or has wrong; {takes}") from None
    except (*NETWORK_ERRORS, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(" \".'")]
        reason = lines[-1] if lines else type(error).__name__
        raise InputError(f"{context}: {hidden(reason)}") from None


def public(address: str) -> str:
    """`address` without a user and password."""
    return USER_IN_URL.sub("", address if "://" in address else f"http://{address}")
