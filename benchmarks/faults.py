"""From a worker's death to the next step, with what takes the time. Prints JSON.

    python -m benchmarks.faults [--workers W] [--users N] [--folder FOLDER]

A simulated log is prepared and SASRec trained on it by workers that Ray starts on this machine. Once they have taken
some steps, one gets SIGKILL. Workers note the time at which they come to what; the command's own lines say when Ray
Train has given the group back and the next one is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fault_marks import MARKS, read_marks
from benchmarks.training import header

STEPS = 30
"""Before the death."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        config = _config(folder, options)
        for words in (["simulate"], ["prepare", "--no-ray"]):
            subprocess.run([*_intentrec(words[0], config), *words[1:]], check=True, stdout=sys.stderr)
        return _killed(folder / "run/models/sasrec" / MARKS, config)


def _config(folder: Path, options: argparse.Namespace) -> Path:
    content = {
        "name": "run",
        "storage": str(folder),
        "extensions": ["benchmarks.fault_marks"],
        "simulate": {"users": options.users, "items": options.items, "days": 30, "processes": 2},
        "data": {"duration": "watch_seconds", "features": [{"name": "action", "intent": True}]},
        "train": {"epochs": 100, "patience": 100, "checkpoint_steps": 10, "reader": {"tokens": 2048}},
        "models": {"sasrec": {"kind": "sasrec"}},
        "cluster": {"workers": options.workers},
    }
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _intentrec(verb: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", verb, str(config)]


def _killed(marks: Path, config: Path) -> dict[str, Any]:
    """Train, kill the worker whose steps were noted last, and wait for the steps of those after it."""
    output = config.with_suffix(".log")
    with output.open("w") as log:
        command = subprocess.Popen(_intentrec("train", config), stdout=log, stderr=log)
    try:
        before = _wait(marks, command, lambda found: sum(mark["what"] == "step ends" for mark in found) >= STEPS)
        pids = {mark["pid"] for mark in before}
        dead = before[-1]["pid"]
        killed = time.time()
        os.kill(dead, signal.SIGKILL)
        told = _told(output, "going on from the last checkpoint")
        after = _wait(
            marks, command, lambda found: any(m["pid"] not in pids and m["what"] == "step ends" for m in found)
        )
    finally:
        command.send_signal(signal.SIGTERM)
        command.wait()
    failed = [mark["at"] for mark in after if mark["what"] == "step fails"]
    new = [mark for mark in after if mark["pid"] not in pids]
    first = {what: min(mark["at"] for mark in new if mark["what"] == what) for what in ("load begins", "step ends")}
    loaded = max(mark["at"] for mark in new if mark["what"] == "load ends")
    moments = {
        "the others' exchange breaks": min(failed, default=None),
        "the group is gone, the next one asked for": told,
        "the last new process has begun": max(mark["created"] for mark in new),
        "our code and TorchRec are imported": max(mark["imported"] for mark in new),
        "tables are made, loading begins": first["load begins"],
        "the checkpoint is loaded": loaded,
        "the next step is taken": first["step ends"],
    }
    return {"seconds_from_death": {what: round(at - killed, 1) for what, at in moments.items() if at is not None}}


def _wait(marks: Path, command: subprocess.Popen, reached: Any, seconds: float = 600) -> list[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and command.poll() is None:
        found = read_marks(marks)
        if reached(found):
            return found
        time.sleep(0.05)
    raise SystemExit(f"the command has ended, or nothing came of it in {seconds:g} s: {command.returncode}")


def _told(output: Path, words: str, seconds: float = 600) -> float:
    deadline = time.monotonic() + seconds
    while words not in output.read_text():
        if time.monotonic() > deadline:
            raise SystemExit(output.read_text())
        time.sleep(0.05)
    return time.time()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--folder", help="in which the run is left; by default a temporary one")
    options = parser.parse_args()
    print(json.dumps(header("faults") | measure(options), indent=1))


if __name__ == "__main__":
    main()
