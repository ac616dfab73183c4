"""How a training process grows over many short epochs, with free memory given back after each, and without.

    python -m benchmarks.growth [--epochs 200]

Both train the soak's log (benchmarks/soak.py) at a time, each in one process of one thread. Prints Markdown: MiB of the
process that are no file's, and of these what malloc has in use, after some of the epochs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import trainer.loop
from benchmarks.soak import Soak
from benchmarks.training import header
from cluster.config import Config
from cluster.stages import Stages
from ingest.settings import load_settings
from trainer.memory import give_back_free

AT = (1, 10, 20, 50, 100, 150, 200, 300, 500)
KINDS = ("given back", "kept")


class _Mallinfo(ctypes.Structure):
    """That of `man mallinfo2`."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def in_use_mib() -> float:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    found = mallinfo2()
    return float(found.uordblks + found.hblkhd) / 2**20


def own_mib() -> float:
    """What this process has of memory that is no file's."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 2**10


def train(kind: str, epochs: int, folder: Path) -> None:
    """Print the MiB after each epoch."""
    soak = Soak(folder, str(folder), "growth", epochs, {})
    content = yaml.safe_load(soak.config.read_text())
    del content["extensions"], content["models"]["popularity"]
    soak.config.write_text(yaml.safe_dump(content))

    def after_an_epoch() -> None:
        if kind == KINDS[0]:
            give_back_free()
        print("epoch", own_mib(), in_use_mib(), flush=True)

    trainer.loop.give_back_free = after_an_epoch
    stages = Stages(load_settings(Config, str(soak.config), []), ray=False)
    stages.make_log()
    stages.prepare()
    stages.train()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            train(options.only, options.epochs, Path(folder))
        return
    facts, command = header("growth"), [sys.executable, "-m", "benchmarks.growth", "--epochs", str(options.epochs)]
    running = [
        subprocess.Popen(
            [*command, "--only", kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for kind in KINDS
    ]
    found = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a training has failed: run it with --only 'given back' to see why")
    tables = [[line.split()[1:] for line in text.splitlines() if line.startswith("epoch ")] for text in found]
    print(f"`{facts['command']}`, {facts['date']}, commit {facts['commit']}, {facts['machine']}\n")
    print(f"| after epoch | {' | '.join(f'free memory {kind}' for kind in KINDS)} | in use |\n|---|---|---|---|")
    for epoch in (at for at in AT if at <= options.epochs):
        cells = [f"{float(table[epoch - 1][0]):.0f}" for table in tables]
        print(f"| {epoch} | {' | '.join(cells)} | {float(tables[0][epoch - 1][1]):.0f} |")


if __name__ == "__main__":
    main()
