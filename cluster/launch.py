"""Runs a function in every worker of a training group: Ray Train's workers, or this very process.

With Ray, a `TorchTrainer` places the workers and forms the process group (gloo on CPU, NCCL on GPU), once for each call
of `fit`: starting again is done here and not by Ray Train, whose FailureConfig counts the user's mistakes as failures
that may pass, and whose elastic groups (`num_workers=(min, max)`) are resized by killing workers in the middle of a
step. A failure that the user has to mend (`InputError`) is shown as such at once; any other starts the group again, up
to `max_failures` times, and the function goes on from its last checkpoint. docs/faults.md has each.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.config import ClusterConfig
from cluster.entry import imported, quiet
from cluster.nodes import Room, check_storage, shortage_told
from cluster.termination import handled, received, time_to_leave
from ingest.errors import InputError
from ingest.storage import join, list_names, read_text, remove, write_text

QUIET = {
    "PYTHONWARNINGS": "ignore",
    "RAY_DEDUP_LOGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
}
TIMES = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
"""How often Ray Train looks after its workers, and how long it waits for room and for the end of workers that hang.
Nodes that are drained are cared for here (cluster/pulse.py)."""


RESULT = ".result-"
"""How the file begins in which the first worker of a group leaves what its work gives."""
MOST_SOCKET_BYTES = 107
"""Of a Unix socket's path, on Linux."""


@contextmanager
def ray_cluster(config: ClusterConfig, storage: str | None = None) -> Iterator[None]:
    """A connection to the Ray cluster of the config, of RAY_ADDRESS, or to one started on this machine.

    Every node of a cluster that was there before has to see `storage`.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    arguments: dict[str, Any] = {"address": address or "local"} | ({} if address else {"include_dashboard": False})
    print(f"connecting to the Ray cluster at {address}" if address else "starting Ray on this machine", flush=True)
    if not address:
        _check_socket_paths()
        arguments["num_cpus"] = max(os.cpu_count() or 1, int(-(-config.workers.max * config.cpus_per_worker // 1)))
    arguments |= {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": {"env_vars": QUIET | TIMES}}
    try:
        with handled(signal.SIGTERM, signal.getsignal(signal.SIGTERM)):  # Ray puts its own there
            ray.init(**arguments)
    except ConnectionError as error:
        raise InputError(f"cluster.address {address}: no Ray cluster answers there: {error}") from None
    except ValueError as error:
        if not address:
            raise
        takes = "takes auto, or the address of a Ray cluster, such as 10.0.0.1:6379"
        raise InputError(f"cluster.address {address}: {takes} ({error})") from None
    try:
        if address and storage:
            check_storage(storage)
        yield
    finally:
        ray.shutdown()


def _check_socket_paths() -> None:
    """Refuse a temporary folder in which the paths of Ray's sockets would be longer than the kernel takes."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    most = MOST_SOCKET_BYTES - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid():07d}/sockets/plasma_store")
    if len(os.fsencode(folder)) > most:
        variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        raise InputError(
            f"{variable} {folder}: has {len(os.fsencode(folder))} bytes, and the paths of Ray's sockets leave room for "
            f"{most}: set a shorter TMPDIR or RAY_TMPDIR"
        )


def run_here(work: str, arguments: dict[str, Any], config: ClusterConfig) -> Any:
    """Run `work` in this process, as the only worker."""
    import torch

    from cluster.bars import Bar
    from embeddings.workers import LeavingError, Worker, single_process

    quiet()
    use_gpu = config.gpus if config.gpus is not None else torch.cuda.is_available()
    device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    worker = Worker(device=device, bar=Bar, asked=lambda goes_on: "SIGTERM" if received() else "")
    with single_process(device), time_to_leave(config.grace):
        try:
            return imported(work)(arguments, worker)
        except LeavingError:
            raise KeyboardInterrupt from None


def run_on_workers(work: str, arguments: dict[str, Any], config: ClusterConfig, storage: str, name: str) -> Any:
    """Run `work` in the Ray Train workers of `config`; its files and Ray Train's own lie below `storage`/`name`, which
    this process alone writes to."""
    folder = join(storage, name)
    for left in list_names(folder):  # by a process that was killed
        if left.startswith(RESULT):
            remove(join(folder, left))
    with ray_cluster(config, storage):
        from cluster.remote_bar import drawn

        room = Room(config)
        with drawn() as board, time_to_leave(config.grace), shortage_told(room.of_one, room.least):
            return _run(Group(work, arguments, config, storage, name, room, board))


@dataclass(frozen=True)
class Group:
    """What is run, and where."""

    work: str
    arguments: dict[str, Any]
    config: ClusterConfig
    storage: str
    name: str
    room: Room
    board: Any


def _run(group: Group) -> Any:
    """Start workers, and start them again until they come to the end or have failed too often."""
    from cluster.failures import input_error, lacks_room, may_pass, summary
    from cluster.pulse import Watchdog

    failures, waits = 0, False
    for attempt in itertools.count(1):
        if received() or (size := group.room.size()) is None:
            raise KeyboardInterrupt
        if not waits:
            device = "GPU" if group.room.use_gpu else "CPU"
            print(f"starting the workers ({size}, on {device}s): this takes Ray and TorchRec a moment", flush=True)
        watchdog = Watchdog(group.board, attempt, group.config.hang_seconds)
        try:
            with group.room.watched(size, group.board), watchdog:
                found = _fit(group, size, attempt, failures)
        except Exception as error:
            refused = input_error(error)
            if refused is not None:
                raise refused from None
            waits = lacks_room(error)
            if waits:
                group.room.tell()
                continue
            failures += 1
            print(f"workers failed: {summary(error, watchdog)}", flush=True)
            if failures > group.config.max_failures or not may_pass(error):
                raise
            print(f"going on from the last checkpoint, try {failures + 1}", flush=True)
            continue
        finally:
            group.room.held = watchdog.nodes() or group.room.held
        if "value" in found:
            return found["value"]
        print(f"the workers have saved and left: {found['left']}", flush=True)
    raise AssertionError("unreachable")


def _fit(group: Group, size: int, attempt: int, failures: int) -> dict[str, Any]:
    """What `size` workers come to: "value", or why they have "left" before."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from cluster.worker_process import GroupConfig, GroupTrainer, in_worker

    use_gpu, config = group.room.use_gpu, group.config
    result = join(group.storage, group.name, f"{RESULT}{os.getpid()}-{attempt}.json")
    write_text(result, "{}")  # each worker looks whether its node sees it
    trainer = GroupTrainer(
        functools.partial(in_worker, group.work),
        train_loop_config={
            "arguments": group.arguments,
            "threads": config.threads,
            "storage": group.storage,
            "result": result,
            "board": group.board,
            "run": group.name,
            "attempt": attempt,
            "most": config.workers.max,
            "restarts": failures,
        },
        scaling_config=ScalingConfig(num_workers=size, use_gpu=use_gpu, resources_per_worker=group.room.of_one),
        run_config=RunConfig(
            name=f"{group.name}/ray",
            storage_path=group.storage,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
        torch_config=GroupConfig(backend="nccl" if use_gpu else "gloo"),
    )
    try:
        trainer.fit()
        found: dict[str, Any] = json.loads(read_text(result))
        return found
    except KeyboardInterrupt:
        trainer.end()
        raise
    finally:
        remove(result)
