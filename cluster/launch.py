"""Runs a function in every worker of a training group: Ray Train's workers, or this very process.

With Ray, `TorchTrainer` places the workers and forms the process group (gloo on CPU, NCCL on GPU). A failure that the
user has to mend (`InputError`) is shown as such at once; any other starts the group again, up to `max_failures` times,
and the function goes on from its last checkpoint.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.config import ClusterConfig
from cluster.nodes import check_storage, missing, shortage_told
from ingest.errors import InputError
from ingest.patience import Outage
from ingest.storage import join, read_text, remove, write_text

Work = Callable[[dict[str, Any], Any], Any]
"""Takes its arguments (JSON) and the `embeddings.workers.Worker`; what the first worker returns (JSON) comes back. It
is named as "module:function" and imported by the workers: the driver does without TorchRec."""

QUIET = {
    "PYTHONWARNINGS": "ignore",
    "RAY_DEDUP_LOGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "2",
}


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
        arguments["num_cpus"] = max(os.cpu_count() or 1, int(-(-config.workers * config.cpus_per_worker // 1)))
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": QUIET}, **arguments)
    except ConnectionError as error:
        raise InputError(f"cluster.address {address}: no Ray cluster answers there: {error}") from None
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
    import tqdm

    from embeddings.workers import Worker, single_process

    _quiet()
    use_gpu = config.gpus if config.gpus is not None else torch.cuda.is_available()
    device = torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    with single_process(device):
        return _imported(work)(arguments, Worker(device=device, bar=functools.partial(tqdm.tqdm, mininterval=0.5)))


def run_on_workers(work: str, arguments: dict[str, Any], config: ClusterConfig, storage: str, name: str) -> Any:
    """Run `work` in `config.workers` Ray Train workers; its files and Ray Train's own lie below `storage`/`name`."""
    with ray_cluster(config, storage):
        from cluster.remote_bar import drawn

        with drawn() as board:
            return _fit(work, arguments, config, storage, name, board)


def _fit(work: str, arguments: dict[str, Any], config: ClusterConfig, storage: str, name: str, board: Any) -> Any:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    available = ray.cluster_resources().get("GPU", 0)
    use_gpu = config.gpus if config.gpus is not None else available >= config.workers
    wanted = _wanted(config, use_gpu)
    result = join(storage, name, f".result-{os.getpid()}.json")
    device = "GPU" if use_gpu else "CPU"
    print(f"starting the workers ({config.workers}, on {device}s): this takes Ray and TorchRec a moment", flush=True)
    attempts = config.max_failures + 1
    for attempt in range(1, attempts + 1):
        trainer = TorchTrainer(
            functools.partial(_in_worker, work),
            train_loop_config={
                "arguments": arguments,
                "threads": config.threads,
                "result": result,
                "board": board,
                "run": name,
                "restarts": attempt - 1,
            },
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
            ),
            run_config=RunConfig(name=f"{name}/ray", storage_path=storage),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        )
        try:
            with shortage_told(wanted):
                trainer.fit()
            return json.loads(read_text(result))
        except Exception as error:
            refused = input_error(error)
            if refused is not None:
                raise refused from None
            if attempt == attempts or not may_pass(error):
                raise
            print(f"workers failed ({_first_line(error)}); going on from the last checkpoint, try {attempt + 1}")
        finally:
            remove(result)
    raise AssertionError("unreachable")


def _wanted(config: ClusterConfig, use_gpu: bool) -> dict[str, float]:
    """The resources of all workers. Refused where the cluster has fewer and does not grow."""
    wanted = {"CPU": config.workers * config.cpus_per_worker} | ({"GPU": config.workers} if use_gpu else {})
    lack = missing(wanted)
    if lack and os.environ.get("INTENTREC_AUTOSCALING") != "1":
        raise InputError(
            f"cluster.workers: {config.workers} workers need {lack}; on a cluster that grows on demand set "
            "INTENTREC_AUTOSCALING=1"
        )
    return wanted


def _in_worker(work: str, config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    from cluster.remote_bar import RemoteBar, say
    from cluster.watching import Metrics
    from embeddings.workers import Worker

    _quiet()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(
            config["threads"] or max(int(ray.get_runtime_context().get_assigned_resources()["CPU"]), 1)
        )
    rank = context.get_world_rank()
    Outage.tell = functools.partial(say, config["board"])
    worker = Worker(
        rank=rank,
        workers=context.get_world_size(),
        device=device,
        report=ray.train.report,
        bar=functools.partial(RemoteBar, config["board"]),
        say=functools.partial(say, config["board"]),
        watch=Metrics(config["run"], rank, config["restarts"]),
    )
    value = _imported(work)(config["arguments"], worker)
    if worker.first:
        write_text(config["result"], json.dumps(value))


def _imported(work: str) -> Work:
    module, _, function = work.partition(":")
    found: Work = getattr(importlib.import_module(module), function)
    return found


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("torchrec", "fbgemm_gpu", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def input_error(error: BaseException) -> InputError | None:
    """The `InputError` of a worker, however Ray wrapped it."""
    seen: list[BaseException | None] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, InputError):
            return InputError(str(getattr(current, "cause", current)))
        if current is not None:
            seen += [current.__cause__, getattr(current, "cause", None)]
            seen += list(getattr(current, "worker_failures", {}).values())
    return None


def may_pass(error: BaseException) -> bool:
    """Whether a failure can be one of a machine, a network or a storage, and not of the code alone."""
    import ray

    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    if any(type(cause).__name__.startswith("WorkerHealthCheck") for cause in causes):  # a worker that is gone, or hangs
        return True
    causes = [getattr(cause, "cause", None) or cause for cause in causes]
    return any(isinstance(cause, RuntimeError | OSError | TimeoutError | ray.exceptions.RayError) for cause in causes)


def _first_line(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", {})
    text = str(next(iter(failures.values()), error))
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
