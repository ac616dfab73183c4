"""Storage that is away for a while, slow or full is asked again: which failures can pass, for how long, who is told.

All retrying is here: `patiently` repeats a call, and `Outage` tells a client that repeats its own requests
(`ingest.s3`) how long to wait. Both count in `answers` what they are answered. After `TOLD_SECONDS` a line says which
storage it is and why, and one more, when it is back, for how long it was away.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from ingest.errors import StorageError

T = TypeVar("T")


class Answers:
    """The answers that storages have given to this process, failures among them.

    Threads that add at the same time may count one answer less: who looks at `count` asks only whether it has changed.
    """

    count = 0

    def add(self) -> None:
        self.count += 1


answers = Answers()
RETRY_SECONDS = 300.0
"""For how long a storage that fails is asked again."""
TOLD_SECONDS = 3.0
FORGOTTEN_SECONDS = 60.0
"""Since the last failure: the next one is of another outage."""
LONGEST_PAUSE = 5.0
_limit: ContextVar[float | None] = ContextVar("limit", default=None)
_PERMANENT = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE", "INVALID_CLIENT_TOKEN_ID", "NO_SUCH_BUCKET",
              "EXPIRED_TOKEN", "HTTP status 400", "HTTP status 403")  # fmt: skip
"""What Arrow's client says that asking again does not mend."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A storage is asked again for up to `seconds` by what this thread does in the block."""
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


@dataclass
class _Away:
    """A storage that fails just now."""

    since: float
    last: float = 0.0
    """When it has failed for the last time."""
    told: bool = False


class Outage:
    """The failures of one request to the storage of `url`, one after the other, until one ends well or time is over."""

    tell: ClassVar[Callable[[str], None]] = staticmethod(lambda line: print(line, flush=True))
    """Shows a person a line; the command line's workers have another one."""
    _lock = threading.Lock()
    _away: ClassVar[dict[str, _Away]] = {}
    """By storage, over all of this process's requests."""

    def __init__(self, url: str, seconds: float | None = None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.storage = f"{parts.scheme}://{parts.netloc}" if parts.netloc else url.rpartition("/")[0] or url
        limit = _limit.get() if seconds is None else seconds
        self.seconds = RETRY_SECONDS if limit is None else limit
        self.began, self.next = time.monotonic(), 0.1

    def pause(self, error: object) -> float:
        """Seconds to wait before the request, which has failed with `error`, is made again; or raises `StorageError`,
        which names its object."""
        now, pause = time.monotonic(), self.next * random.uniform(0.5, 1.0)
        reason = " ".join(str(error).split()) or type(error).__name__
        with self._lock:
            away = self._away.get(self.storage)
            if away is None or now - away.last > FORGOTTEN_SECONDS:
                away = self._away[self.storage] = _Away(self.began)
            away.last, tell = now, not away.told and now - away.since >= TOLD_SECONDS
            away.told |= tell
        if tell:
            Outage.tell(f"{self.storage} has failed for {now - away.since:.0f} s ({reason}): it is asked again")
        if now + pause > self.began + self.seconds:
            raise StorageError(f"{self.url}: has failed for {self.seconds:g} s, at last with: {reason}")
        self.next = min(2 * self.next, LONGEST_PAUSE)
        return pause

    def over(self) -> None:
        """The request has ended well."""
        with self._lock:
            away = self._away.pop(self.storage, None)
        if away is not None and away.told:
            Outage.tell(f"{self.storage} is back after {time.monotonic() - away.since:.0f} s")


def can_pass(error: Exception) -> bool:
    """Whether a failure can be one of a network or a server, and neither a refusal nor that nothing is there."""
    if isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error, OSError):
        return False
    return not any(word in str(error) for word in _PERMANENT)


def is_full(error: Exception) -> bool:
    """Whether a disk has no room, which others can make."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def patiently(
    ask: Callable[[], T], url: str, seconds: float | None = None, passes: Callable[[Exception], bool] = can_pass
) -> T:
    """The answer of `ask`, repeated with growing pauses while it fails with what `passes`, for up to `seconds`.

    Raises what does not pass as it is, and then `StorageError`, which names `url`.
    """
    outage = Outage(url, seconds)
    failed = False
    with at_most(outage.seconds):
        while True:
            try:
                found = ask()
            except Exception as error:
                answers.add()
                if not passes(error):
                    raise
                failed, pause = True, outage.pause(error)
            else:
                answers.add()
                if failed:
                    outage.over()
                return found
            time.sleep(pause)
