"""The nodes of a Ray cluster: whether all see the storage of a run, and whether there are enough of them."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.config import ClusterConfig
from cluster.termination import received
from ingest.errors import InputError
from ingest.storage import is_remote, join, read_text, remove, write_text

SECONDS = 300
"""How long a node may take to read a few bytes."""
SETTLED = 15.0
"""Seconds for which a number of workers has to have room before it is taken as what there is."""
RETURNED = 60.0
"""The same while a node has not given back what workers that have ended held there."""


def check_storage(storage: str, seconds: float = SECONDS) -> None:
    """Raises `InputError` with the first node that can not read what this process writes below `storage`.

    Nodes without CPUs, which get no work, are not asked.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
    if not nodes:  # a cluster that grows on demand
        return
    marker = join(storage, f".read-by-all-nodes-{secrets.token_hex(8)}")
    write_text(marker, "seen")
    ask = ray.remote(num_cpus=0, max_retries=0)(_problem)
    try:
        asked = {}
        for node, address in nodes.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            asked[ask.options(scheduling_strategy=there).remote(marker)] = address
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        for reference, address in asked.items():
            problem = _answer(reference, address) if reference in answered else f"no answer in {seconds:g} s"
            if problem is not None:
                raise _refusal(storage, address, problem)
    finally:
        remove(marker)


def refuse_unseen(storage: str, marker: str) -> None:
    """Raises `InputError` where this node, which may have come after others were asked, can not read the file `marker`
    that was just written below `storage`."""
    import ray

    problem = _problem(marker)
    if problem is not None:
        raise _refusal(storage, ray.util.get_node_ip_address(), problem)


def _problem(marker: str) -> str | None:
    """Why this node can not read the file `marker`, where it can not."""
    try:
        read_text(marker)
    except (InputError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _answer(reference: Any, address: str) -> str | None:
    import ray

    try:
        problem: str | None = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"node {address} of the Ray cluster can not run this release ({reason}): it has to be installed there"
        ) from None
    except ray.exceptions.RayError:  # the node is gone, and so gets no work
        return None
    return problem


def _refusal(storage: str, address: str, problem: str) -> InputError:
    cure = (
        "the AWS variables (credentials, endpoint) have to be set where Ray starts on that node"
        if is_remote(storage)
        else "workers on several machines need a folder that all of them share, or s3://"
    )
    return InputError(
        f"storage {storage}: node {address} of the Ray cluster does not see what is written there ({problem}); {cure}"
    )


class Room:
    """What the Ray cluster has for the workers of `config`: for how many, and of what."""

    def __init__(self, config: ClusterConfig) -> None:
        """Refused where there is not room for the least, on a cluster that does not grow."""
        import ray

        self.least, self.most = config.workers.min, config.workers.max
        gpus = ray.cluster_resources().get("GPU", 0)
        self.use_gpu = config.gpus if config.gpus is not None else gpus >= self.least
        self.of_one = {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})
        self.held: Counter[str] = Counter()
        """How many of the last workers ran on each node, by its id."""
        self.told = False
        require(self.of_one, self.least, f"cluster.workers: {self.least} workers need")

    def size(self) -> int | None:
        """How many workers start now: the most, or those for which there is room once that stays so for a while; None
        where the command is asked to end before.

        What ended workers held comes back in seconds, on a busy machine in more, and a dead node takes some to be known
        as such. While there is not room for the least, a cluster that grows on demand is asked for it.
        """
        if self.least == self.most:
            return self.most
        asked = False
        try:
            found, since = -1, time.monotonic()
            while not received():
                free = self._free()
                now = min(sum(free.values()), self.most)
                if now != found:
                    found, since = now, time.monotonic()
                returned = all(free[node] >= number for node, number in self.held.items() if node in free)
                settled = time.monotonic() - since > (SETTLED if returned else RETURNED)
                if found == self.most or (found >= self.least and settled):
                    return found
                if found < self.least and settled:
                    self.tell()
                if found < self.least and not asked:
                    self._ask(self.least)
                    asked = True
                time.sleep(1)
            return None
        finally:
            if asked:
                self._ask(0)

    def tell(self) -> None:
        """Say once that room is waited for, which other work may have."""
        if not self.told:
            each = shape(self.of_one)
            print(f"waiting for room for {self.least} workers ({each} each)", flush=True)
        self.told = True

    def _ask(self, workers: int) -> None:
        """Ask the autoscaler, where there is one, that so many workers find room, until it is asked otherwise."""
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self.of_one] * workers)

    def free(self) -> int:
        """For how many more workers there is room now."""
        return sum(self._free().values())

    def _free(self) -> dict[str, int]:
        """The same by the id of each node that is alive and is not about to be lost."""
        import ray

        from cluster.pulse import draining_nodes

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining_nodes()
        nodes = ray._private.state.available_resources_per_node()
        return {node: room_on(has, self.of_one) for node, has in nodes.items() if node in alive}

    @contextmanager
    def watched(self, workers: int, board: Any) -> Iterator[None]:
        """While the block runs with so many workers, ask them to leave once there is room for more.

        That is not looked for before all have begun: what is free until then is what they will take.
        """
        import ray

        ended = threading.Event()

        def watch() -> None:
            since, begun = time.monotonic(), False
            while not ended.wait(2):
                more = 0
                with suppress(ray.exceptions.RayError, TimeoutError):
                    begun = begun or len(ray.get(board.pulses.remote(), timeout=10)) >= workers
                    more = min(self.free(), self.most - workers) if begun else 0
                if more <= 0:
                    since = time.monotonic()
                elif time.monotonic() - since > SETTLED:
                    board.ask_to_leave.remote(f"there is room for {workers + more} workers", now=False)
                    return

        if workers < self.most:
            threading.Thread(target=watch, name="room", daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def missing(of_one: dict[str, float], count: int) -> str | None:
    """What the cluster lacks for `count` workers that take `of_one` (resource -> number) each on one node, in words;
    None where it lacks nothing."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, number in of_one.items():
        there = sum(node.get(kind, 0) for node in nodes)
        if there < number * count:
            return f"{number * count:g} {kind}s, the Ray cluster has {there:g}"
    rooms = sum(room_on(node, of_one) for node in nodes)
    if rooms < count:
        return f"{shape(of_one)} on one node each, the nodes of the Ray cluster have that for {rooms}"
    return None


def room_on(node: dict[str, float], of_one: dict[str, float]) -> int:
    """For how many a node that has `node` has `of_one` each."""
    return int(min((node.get(kind, 0) + 1e-6) / number for kind, number in of_one.items()))


def shape(of_one: dict[str, float]) -> str:
    """What one worker takes, in words."""
    return " and ".join(f"{number:g} {kind}{'s' * (number != 1)}" for kind, number in of_one.items())


def require(of_one: dict[str, float], count: int, who: str) -> None:
    """Raise `InputError` where the cluster lacks room for `count` of them and does not grow. `who`: key and words."""
    lack = missing(of_one, count)
    if lack and os.environ.get("INTENTREC_AUTOSCALING") != "1":
        raise InputError(f"{who} {lack}; on a cluster that grows on demand set INTENTREC_AUTOSCALING=1")


@contextmanager
def shortage_told(of_one: dict[str, float], count: int, seconds: float = 10) -> Iterator[None]:
    """While the block runs, print when the cluster comes to lack room for `count` workers, as where a node is lost.

    Ray waits for a node to come in its place, and says nothing.
    """
    ended = threading.Event()

    def watch() -> None:
        told = None
        while not ended.wait(seconds):
            lack = missing(of_one, count)
            if lack != told:
                waiting = f"the workers need {lack}: waiting for more"
                print(waiting if lack else "the Ray cluster has what the workers need", flush=True)
            told = lack

    watcher = threading.Thread(target=watch, name="shortage", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
