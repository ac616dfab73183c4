"""What failures of a training group are: the user's to mend, a mistake of the code, or such that may pass."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.pulse import Watchdog
from ingest.errors import InputError


def failures_of(error: BaseException) -> Mapping[int, BaseException]:
    """What failed, by rank; -1 for what is of no worker."""
    of_workers = getattr(error, "worker_failures", None)
    return of_workers or {-1: getattr(error, "controller_failure", None) or error}


def input_error(error: BaseException) -> InputError | None:
    """The `InputError` of a worker, however Ray wrapped it."""
    seen: list[BaseException | None] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, InputError):
            return InputError(str(getattr(current, "cause", current)))
        if current is not None:
            seen += [current.__cause__, getattr(current, "cause", None), getattr(current, "controller_failure", None)]
            seen += list(getattr(current, "worker_failures", {}).values())
    return None


def is_gone(failure: BaseException) -> bool:
    """Whether it is that a worker's process is no longer there."""
    import ray

    return type(failure).__name__.startswith("WorkerHealthCheck") or isinstance(failure, ray.exceptions.RayActorError)


def lacks_room(error: BaseException) -> bool:
    """Whether the cluster had no room for the workers, as before a node comes in place of another."""
    return any(type(cause).__name__ == "WorkerGroupStartupTimeoutError" for cause in failures_of(error).values())


def may_pass(error: BaseException) -> bool:
    """Whether a failure can be one of a machine, a network or a storage, and not of the code alone."""
    import ray

    causes = [getattr(cause, "cause", None) or cause for cause in failures_of(error).values()]
    passing = RuntimeError | OSError | ray.exceptions.RayError
    return any(
        is_gone(cause) or type(cause).__name__ == "WorkerGroupStartupFailedError" or isinstance(cause, passing)
        for cause in causes
    )


def summary(error: BaseException, watchdog: Watchdog) -> str:
    """Which workers failed, where they stood and why: first those that are gone, then those that this has ended."""
    failures = sorted(failures_of(error).items(), key=lambda failure: (not is_gone(failure[1]), failure[0]))
    return "; ".join(
        f"{watchdog.stood(rank)}: {watchdog.hung.get(rank) or _reason(failure)}" if rank >= 0 else _reason(failure)
        for rank, failure in failures
    )


def _reason(failure: BaseException) -> str:
    return last_line(str(failure)) or type(failure).__name__


def last_line(text: str) -> str:
    """What a traceback ends with; empty where there is nothing."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
