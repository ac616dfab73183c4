"""Submit an `intentrec ...` command to a running Ray cluster as a Ray job, and follow it.

The job runs on the cluster's head and goes on when this process ends. The working directory travels with it, without
data, runs, environments and the files that credentials are usually in. Credentials do not travel: whatever is submitted
can be read on the cluster's dashboard and in its logs, so they belong in the cluster's own environment (a Kubernetes
Secret in ray_job.yaml), and a command or a variable that carries one is refused.
"""

from __future__ import annotations

import shlex

from cluster.jobs import connect, followed, hint_for, public, refusals, status_of
from ingest.credentials import SECRET_NAME, found_in
from ingest.errors import InputError

EXCLUDES = (
    *(".git/", ".venv/", "/data/", "/runs/", "__pycache__/", ".*_cache/", ".hypothesis/", "*.egg-info/"),
    *(".env", ".env.*", ".envrc", ".netrc", ".aws/", ".ssh/", "*.pem", "*.key", "*.p12"),
)
"""What of the working directory stays at home, in the form of .gitignore; the folder's own .gitignore counts too. The
second line has the files that credentials are usually in."""

STOP_SECONDS = 60
"""For a job that is cancelled to save and end, before Ray kills it; Ray by itself gives it 3."""


def submit(command: list[str], address: str, working_dir: str | None, env: dict[str, str], follow: bool = True) -> str:
    """Run `command` as a Ray job on the cluster whose dashboard is at `address` ("http://head:8265", "head:8265").

    `working_dir` is uploaded and is the job's current folder (None: the cluster has all it needs, as in our image);
    `env` is added to the job's environment. With `follow` the job's output goes to stdout until it ends.
    Returns the job's status: "SUCCEEDED", or, without `follow`, that of this moment ("PENDING" ...).

    Raises `InputError` where the address does not answer, the job is refused, does not succeed, or would carry a
    credential. An interrupt (Ctrl-C) stops the following and not the job.
    """
    _refuse_secrets(command, env)
    client = connect(address)
    runtime_env: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | env}
    if working_dir is not None:
        runtime_env |= {"working_dir": working_dir, "excludes": list(EXCLUDES)}
    with refusals(f"{public(address)}: the job was refused"):
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env=runtime_env)
    print(f"submitted {job}; its output: {hint_for(client, job)}", flush=True)
    status = followed(client, job, address) if follow else status_of(client, job, address)
    return str(status.value)


def _refuse_secrets(command: list[str], env: dict[str, str]) -> None:
    where = "the cluster takes credentials from its own environment (a Secret in ray_job.yaml)"
    for name, value in env.items():
        if SECRET_NAME.search(name) or found_in(value):
            raise InputError(f"variable {name}: would show a credential in the cluster's logs; {where}")
    for position, argument in enumerate(command):
        if found_in(argument):
            raise InputError(f"argument {position} of the command holds a credential; {where}")
