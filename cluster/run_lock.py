"""One process at a time writes below a run's folder, on local disks and object stores alike.

The lock is the file of the highest number in `<run>/.lock/`, which says who holds it. It is free where there is none,
or where its holder has released it or died; who takes it creates the file of the next number, which the storage grants
to one process alone (a hard link, or If-None-Match). The highest file is never removed: a number is given once.

Whether a holder lives is seen at once on its own machine, by its process; on another one by its renewals, every
`RENEW_SECONDS`: who wants the lock watches them for up to `EXPIRE_SECONDS`. No clock is compared with another's.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.termination import handled
from ingest.errors import InputError
from ingest.patience import at_most, patiently
from ingest.storage import is_remote, join, list_names, make_folder, open_filesystem, remove, storage_errors, write_text

FOLDER = ".lock"
LOST = signal.SIGUSR2
"""What interrupts a process that has lost its lock: SIGINT is ignored by what a shell starts in the background."""
RENEW_SECONDS, EXPIRE_SECONDS = 10.0, 60.0
PATIENCE = 30.0
"""Seconds for which the storage may fail before the lock is given up."""


@dataclass
class Holder:
    """What the lock's file says of a process."""

    id: str
    verb: str
    host: str
    machine: str
    """Tells apart machines, their starts and their containers."""
    pid: int
    started: str
    """When the process began, in the kernel's count: another one of the same number has another."""
    since: str
    renewals: int = 0
    released: bool = False

    @classmethod
    def this_process(cls, verb: str) -> Holder:
        since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid, host = os.getpid(), socket.gethostname()
        return cls(secrets.token_hex(8), verb, host, _machine(), pid, _start(pid), since)

    def is_dead(self) -> bool | None:
        """Whether the process is gone; None where it is of another machine."""
        return None if self.machine != _machine() else _start(self.pid) != self.started

    def __str__(self) -> str:
        return f"`intentrec {self.verb}`, process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def run_lock(run: str, verb: str, renew: float = RENEW_SECONDS, expire: float = EXPIRE_SECONDS) -> Iterator[None]:
    """Hold the lock of the run in the folder `run` while the block runs.

    Raises `InputError` with the holder where another process has it, and where this one has lost it: then the block is
    interrupted, before it writes more.
    """
    lock = _Lock(join(run, FOLDER), Holder.this_process(verb), renew, expire)
    lock.take()
    renewing = threading.Thread(target=lock.keep, name="lock", daemon=True)
    with handled(LOST, signal.default_int_handler):
        renewing.start()
        try:
            yield
        except KeyboardInterrupt:
            if lock.lost_to is not None:
                told = f"{run}: was taken by another process while this one was silent: {lock.lost_to}"
                raise InputError(told) from None
            raise
        finally:
            lock.ended.set()
            renewing.join()
            lock.release()


class _Lock:
    def __init__(self, folder: str, own: Holder, renew: float, expire: float) -> None:
        self.folder, self.own, self.renew, self.expire = folder, own, renew, expire
        self.number = 0
        self.ended = threading.Event()
        self.lost_to: Holder | None = None

    def take(self) -> None:
        until = None
        while True:
            highest = self._highest()
            holder = self._read(highest) if highest else None
            if holder is not None and not holder.released and not self._has_died(highest, holder):
                run = self.folder.removesuffix(f"/{FOLDER}")
                raise InputError(f"{run}: this run is being made by another process: {holder}")
            self.number = highest + 1
            until = until or time.monotonic() + PATIENCE
            if self._create(until) and self._highest() == self.number:
                for name in self._numbers():
                    if name < self.number:
                        remove(self._file(name))
                return
            time.sleep(0.2)

    def keep(self) -> None:
        """Renew until the end; interrupt this process where another one has taken the lock."""
        while not self.ended.wait(self.renew):
            with at_most(self.renew), suppress(OSError, InputError):  # a storage that does not answer is asked again
                highest = self._highest()
                if highest > self.number:
                    self.lost_to = self._read(highest) or self.own
                    os.kill(os.getpid(), LOST)
                    return
                self.own.renewals += 1
                self._write()

    def release(self) -> None:
        if self.lost_to is None:
            self.own.released = True
            with at_most(PATIENCE), suppress(OSError, InputError):
                self._write()

    def _has_died(self, number: int, holder: Holder) -> bool:
        """Of another machine: whether it renews nothing for `expire` seconds."""
        dead = holder.is_dead()
        if dead is not None:
            return dead
        print(f"the run was begun by {holder}; watching for up to {self.expire:g} s whether it goes on", flush=True)
        until = time.monotonic() + self.expire
        while time.monotonic() < until:
            time.sleep(min(self.renew / 2, 2.0))
            now = self._read(number)
            if now is None or now.released:
                return True
            if now.renewals != holder.renewals:
                return False
        return True

    def _numbers(self) -> list[int]:
        names = [name.removesuffix(".json") for name in list_names(self.folder)]
        return sorted(int(name) for name in names if name.isdigit())

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _file(self, number: int) -> str:
        return join(self.folder, f"{number:09d}.json")

    def _read(self, number: int) -> Holder | None:
        """None where it is gone meanwhile."""
        url = self._file(number)
        filesystem, path = open_filesystem(url)
        try:
            with storage_errors(url):  # in one request: it may be replaced
                content = patiently(lambda: filesystem.cat_file(path), url, PATIENCE)
        except FileNotFoundError:
            return None
        try:
            return Holder(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise InputError(f"{url}: damaged: {error}; remove it if no process makes this run") from None

    def _write(self) -> None:
        write_text(self._file(self.number), json.dumps(asdict(self.own)))

    def _create(self, until: float) -> bool:
        """Whether this process is the one that made the file of its number. A storage may fail `until` then."""
        url = self._file(self.number)
        try:
            self._create_once(url)
        except OSError as error:
            if isinstance(error, PermissionError | FileNotFoundError) or time.monotonic() > until:
                raise InputError(f"{url}: can not be written: {error}") from None
            found = self._read(self.number)  # a client that asks again may meet its own file
            return found is not None and found.id == self.own.id
        return True

    def _create_once(self, url: str) -> None:
        """Make the file; an `OSError` where it is there: s3fs gives `FileExistsError` or EINVAL, by the server."""
        content = json.dumps(asdict(self.own))
        if is_remote(url):
            filesystem, path = open_filesystem(url)
            try:
                filesystem.pipe_file(path, content.encode(), mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                print(f"{url}: this storage has no conditional writes, so two processes that begin at the very same "
                      "moment are not told apart", flush=True)  # fmt: skip
                filesystem.pipe_file(path, content.encode())
            return
        make_folder(self.folder)
        draft = Path(self.folder, f".{self.own.id}")
        draft.write_text(content)
        try:
            os.link(draft, url)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with Path(url).open("x") as file:  # a disk without hard links
                file.write(content)
        finally:
            draft.unlink()


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    names = [socket.gethostname(), boot.read_text().strip() if boot.exists() else ""]
    with suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _start(pid: int) -> str:
    """When process `pid` began, in clock ticks since the machine did; empty where there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
