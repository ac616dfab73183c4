"""Several machines on this one: Linux namespaces with their own network address, name, processes, /tmp and /dev/shm.

Each node is as a container of our image: it reads this machine's files (Python, the packages) and can write none of
them, so what nodes have in common is their network and what is served there. A node ends with its first process, the
network with the nodes, and all of them with the process that has made them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.readme import ROOT

SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", *SPACES)
COMMANDS = ("ip", "setpriv", "unshare", "nsenter", "mount", "hostname", "bash")
INIT = """
set -e
folder=$1 name=$2; shift 2
for image; do mkdir -p "$folder${image#/tmp}"; mount --bind "$image" "$folder${image#/tmp}"; done
mount --rbind "$folder" /tmp
for file in hosts resolv.conf; do mount --bind "/tmp/$file" "/etc/$file"; done
mount -t tmpfs -o size=300m tmpfs /dev/shm
mount -o remount,bind,ro /
hostname "$name"
touch /tmp/ready
sleep infinity & wait
"""
"""Of a node; bash, its first process, waits for whatever others leave. `image`: what lies below the /tmp of before."""


def why_not() -> str:
    """Why this machine can not have such nodes; empty where it can."""
    lacking = [command for command in COMMANDS if shutil.which(command) is None]
    if lacking:
        return f"nodes in namespaces take {', '.join(lacking)}"
    tried = subprocess.run([*UNSHARE, "ip", "link", "add", "type", "bridge"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


class Node:
    """One machine; `folder` is its /tmp, `hosts` its /etc/hosts."""

    def __init__(self, name: str, folder: Path, hosts: str) -> None:
        self.name, self.folder = name, folder
        (folder / "home").mkdir(parents=True)
        (folder / "hosts").write_text(hosts)
        (folder / "resolv.conf").write_text("")  # nobody answers at 127.0.0.1, which is told at once
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "HOME": "/tmp/home", "PYTHONPATH": str(ROOT)}
        """Of the commands that are begun on it."""
        images = [str(image) for image in (ROOT, Path(sys.prefix).resolve()) if image.is_relative_to("/tmp")]
        command = [*UNSHARE, "bash", "-c", INIT, "bash", str(folder), name, *images]
        self.process = subprocess.Popen(command, cwd="/")
        wait_until((folder / "ready").exists, self.process)

    @property
    def pid(self) -> int:
        """The number, outside, of the node's first process."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin the command `words` in the node's home; what it says comes together on stdout."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--ipc", "--pid"]
        command = [*enter, "sh", "-c", 'cd && exec "$@"', "sh", *words]
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(command, env=self.environment, stdout=pipe, stderr=both, text=True)

    def run(self, *words: str) -> str:
        """What the command `words` says."""
        return finished(self.start(*words))

    def kill(self) -> None:
        """As if the power went off."""
        self.process.kill()
        self.process.wait()


class Network:
    """A switch, which this machine is joined to as `address`, with a node for each of `names`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        number = os.getpid()
        prefix = f"198.{18 + number // 256 % 2}.{number % 256}"  # set aside for trying networks out (RFC 2544)
        self.address = f"{prefix}.1"
        self.addresses = {name: f"{prefix}.{host}" for host, name in enumerate(names, 2)}
        self.switch = Node("switch", folder / "switch", "")
        self.nodes = dict[str, Node]()
        try:
            self.switch.run(*words("ip link add bridge type bridge"))
            self.switch.run(*words("ip link set bridge up"))
            self._join(f"intentrec{number}", "outside", os.getpid())
            run(f"ip address add {self.address}/24 dev intentrec{number}")
            run(f"ip link set intentrec{number} up")
            hosts = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
            for name, address in self.addresses.items():
                self.nodes[name] = node = Node(name, folder / name, f"127.0.0.1 localhost\n{hosts}")
                self._join("eth0", name, node.pid)
                node.run(*words(f"ip address add {address}/24 dev eth0"))
                node.run(*words("ip link set eth0 up"))
                node.run(*words("ip link set lo up"))
                node.run(*words(f"ip route add default via {self.address}"))
        except BaseException:
            self.close()
            raise

    def _join(self, device: str, port: str, pid: int) -> None:
        """Lay a cable from the switch's `port` to the `device` of the process `pid`."""
        run(f"ip link add {device} netns {pid} type veth peer name {port} netns {self.switch.pid}")
        self.switch.run(*words(f"ip link set {port} master bridge up"))

    def cut(self, name: str) -> None:
        """Pull a node's cable: it lives, and nobody hears of it."""
        self.switch.run(*words(f"ip link set {name} down"))

    def close(self) -> None:
        for node in [*self.nodes.values(), self.switch]:
            node.kill()


def words(command: str) -> list[str]:
    return command.split()


def run(command: str) -> str:
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return finished(subprocess.Popen(command.split(), stdout=pipe, stderr=both, text=True))


def finished(process: subprocess.Popen[str], seconds: float = 400) -> str:
    """What `process` says until it ends well."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, f"{process.args} ended with {process.returncode}:\n{said}"
    return said


def wait_until(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args}: ended with {process.poll()} before it was ready")
        time.sleep(0.02)
