"""SIGTERM to the command and to the process of a worker: a checkpoint of that very step, and a status that says so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.entry import interface_of
from cluster.termination import received, sigterm_handled, time_to_leave
from tests.cluster.readme import ROOT


def test_a_first_signal_is_told_and_the_end_of_the_grace_period_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_handled(), time_to_leave(0.2):
        os.kill(os.getpid(), signal.SIGTERM)
        assert received()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_nobody_waits_for_interrupts_at_once() -> None:
    with sigterm_handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_interrupts_at_once() -> None:
    began = time.monotonic()
    with sigterm_handled(), time_to_leave(60):
        os.kill(os.getpid(), signal.SIGTERM)
        assert received()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert time.monotonic() - began < 30


def test_the_end_of_a_grace_period_that_is_over_interrupts_nothing_else() -> None:
    with sigterm_handled(), time_to_leave(0.2):
        os.kill(os.getpid(), signal.SIGTERM)
    with sigterm_handled(), time_to_leave(60):
        time.sleep(0.5)
        assert not received()


def test_every_interface_of_this_machine_is_found_by_its_address() -> None:
    found = {address.address: name for name, all_of in psutil.net_if_addrs().items() for address in all_of}
    for address, name in found.items():
        assert interface_of(address.partition("%")[0]) in {n for a, n in found.items() if a == address} | {name}
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None


IN_NAMESPACE = """
import os, sys, socket
from datetime import timedelta
import torch, torch.distributed as dist
from cluster.entry import interface_of
rank, address = int(sys.argv[1]), sys.argv[2]
assert socket.gethostbyname(socket.gethostname()) == "127.0.1.1"
store = dist.TCPStore("10.77.0.1", 29500, 2, is_master=rank == 0, timeout=timedelta(seconds=60))
def meet(where):
    store.set(f"{where} {rank}", "")
    store.wait([f"{where} 0", f"{where} 1"])
for attempt, seconds in (("plain", 2), ("set", 60)):
    if attempt == "set":
        os.environ["GLOO_SOCKET_IFNAME"] = interface_of(address)
    meet(attempt)
    try:
        group = dist.ProcessGroupGloo(dist.PrefixStore(attempt, store), rank, 2, timedelta(seconds=seconds))
        value = torch.ones(1)
        group.allreduce([value]).wait()
        print(attempt, value.item(), flush=True)
    except RuntimeError:
        print(attempt, "failed", flush=True)
meet("end")
"""
TWO_NAMESPACES = """
set -e
hostname debian
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' > "$1/hosts"
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
unshare --net sleep 100 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
ip link add here type veth peer name there netns $other
ip address add 10.77.0.1/24 dev here; ip link set here up
nsenter --net=/proc/$other/ns/net sh -c 'ip link set lo up; ip address add 10.77.0.2/24 dev there; ip link set there up'
nsenter --net=/proc/$other/ns/net "$2" "$1/exchange.py" 1 10.77.0.2 > "$1/second" & second=$!
"$2" "$1/exchange.py" 0 10.77.0.1
wait $second; kill $other; cat "$1/second"
"""


def test_hosts_whose_own_name_is_127_0_1_1_exchange_without_an_interface_set(tmp_path: Path) -> None:
    """Two network namespaces with Debian's /etc/hosts, where gloo by itself takes an address that each has."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--uts", "--kill-child", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no one make namespaces")
    (tmp_path / "exchange.py").write_text(IN_NAMESPACE)
    words = [*alone, "sh", "-c", TWO_NAMESPACES, "sh", str(tmp_path), sys.executable]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}, timeout=300
    )
    assert done.stdout.split("\n") == ["plain failed", "set 2.0"] * 2 + [""], done
