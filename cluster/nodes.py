"""Whether every node of a Ray cluster sees the storage of a run: a wrong node is told before anything starts on it."""

from __future__ import annotations

import secrets
from typing import Any

from ingest.errors import InputError
from ingest.storage import is_remote, join, read_text, remove, write_text

SECONDS = 300
"""How long a node may take to read a few bytes."""


def check_storage(storage: str, seconds: float = SECONDS) -> None:
    """Raises `InputError` with the first node that can not read what this process writes below `storage`.

    Nodes without CPUs, which get no work, are not asked.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
    content = secrets.token_hex(8)
    marker = join(storage, f".read-by-all-nodes-{content}")
    write_text(marker, content)
    ask = ray.remote(num_cpus=0, max_retries=0)(_problem)
    try:
        asked = {}
        for node, address in nodes.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            asked[ask.options(scheduling_strategy=there).remote(marker, content)] = address
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        for reference in answered:
            _refuse(storage, asked[reference], _answer(reference, asked[reference]))
        for reference in silent:
            _refuse(storage, asked[reference], f"no answer in {seconds:g} s")
    finally:
        remove(marker)


def _problem(marker: str, content: str) -> str | None:
    """Why this node does not see `content` in the file `marker`, where it does not."""
    try:
        return None if read_text(marker) == content else f"{marker} has another content"
    except (InputError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def _answer(reference: Any, address: str) -> str | None:
    import ray

    try:
        problem: str | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"node {address} of the Ray cluster can not run this release ({reason}): it has to be installed there"
        ) from None
    return problem


def _refuse(storage: str, address: str, problem: str | None) -> None:
    if problem is None:
        return
    cure = (
        "the AWS variables (credentials, endpoint) have to be set where Ray starts on that node"
        if is_remote(storage)
        else "workers on several machines need a folder that all of them share, or s3://"
    )
    raise InputError(
        f"storage {storage}: node {address} of the Ray cluster does not see what is written there ({problem}); {cure}"
    )
