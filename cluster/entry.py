"""What a process of a training group begins with: its work, by name, a network interface, and quiet libraries."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import psutil

Work = Callable[[dict[str, Any], Any], Any]
"""Takes its arguments (JSON) and the `embeddings.workers.Worker`; what the first worker returns (JSON) comes back. It
is named as "module:function" and imported by the workers: the driver does without TorchRec."""


def imported(work: str) -> Work:
    """The function that `work` names.

    Three thousand modules come with it, to stay. To look for garbage among them takes a sixth of the time to import
    them, so they are left out of it, and stay so.
    """
    module, _, function = work.partition(":")
    if module not in sys.modules:
        gc.collect()
        gc.disable()
        try:
            importlib.import_module(module)
        finally:
            gc.enable()
        gc.freeze()
    found: Work = getattr(sys.modules[module], function)
    return found


def quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("torchrec", "fbgemm_gpu", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the IP `address`.

    Without one gloo takes the interface that the machine's own name leads to, which on Debian is 127.0.1.1.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return None
