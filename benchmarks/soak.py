"""Training under faults, against the same training undisturbed: it ends by itself, with the same bits. Prints Markdown.

    python -m benchmarks.soak                              # an hour, a fault each minute, s3:// and a disk
    python -m benchmarks.soak --minutes 5 --storage s3
    python -m benchmarks.soak --kills 20 --storage disk    # workers in a step, checkpoint, validation, evaluation
    python -m benchmarks.soak --kills 20 --faults driver --storage disk
    python -m benchmarks.soak --kills 20 --items 4000      # most checkpoints have the rows that have changed alone

`intentrec run` of a small log with two workers, on Ray on this machine, is started again as a user would where a fault
has ended it. Faults are chosen by `--seed`; the moments are the machine's. What is checked: the run ends well; the last
checkpoint has the same bits as that of the run undisturbed, one for all storages, its curves and its best one are the
same, and so are the results; every sequence of every epoch was given to be trained on once; no process and no piece of
a checkpoint is left. Slopes tell what grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from benchmarks.soak_checks import Looks, differences, kind_of, left_in, rows_of
from benchmarks.training import header
from ingest.storage import join, read_text
from tests.disk import SmallDisk
from tests.s3 import ObjectStore
from trainer.progress import Markers

ROOT = Path(__file__).resolve().parents[1]
AWAY = 30.0
"""Seconds for which a storage is away, silent or full."""
STARTING = 300.0
"""Seconds within which workers are at work again."""
PHASES = ("step", "checkpoint", "validation", "evaluation")
FAULTS = ("worker", "driver", "raylet", "ray", "s3", "disk")
OF_STORAGE = {"s3": ("s3 away", "s3 silent"), "disk": ("disk full",)}


@dataclass
class Soak:
    """One run below `folder`, whose storage is `storage`, started again until it ends well."""

    folder: Path
    storage: str
    name: str
    epochs: int
    environment: dict[str, str]
    items: int = 0
    """Of a catalogue of which a step trains a part; 0 for a small one of which each step trains all."""
    process: subprocess.Popen[bytes] | None = None
    starts: list[int | None] = field(default_factory=list)
    """The exit status of each start."""
    faults: list[tuple[float, str, str, float | None]] = field(default_factory=list)
    """When, which, in what the workers were, and seconds until all were at work again."""

    def __post_init__(self) -> None:
        self.watched = self.folder / f"watched-{self.name}"
        shutil.rmtree(self.watched, ignore_errors=True)  # of the storage before
        self.watched.mkdir()
        content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
        content["simulate"] |= {"users": 150, "items": 60, "days": 20}
        content["train"] |= {"epochs": self.epochs, "patience": self.epochs, "decay": 0.99, "checkpoint_steps": 7}
        content["data"] |= {"row_group_interactions": 500, "shard_interactions": 2000}
        content["train"]["reader"] |= {"max_length": 30, "shuffle_buffer": 2000}
        content["train"]["tables"] |= {"dimension": 16}
        if self.items:
            content["simulate"]["items"] = self.items
            content["train"]["loss"] = {"kind": "sampled", "negatives": 32, "sampling": "in_batch"}
            content["train"] |= {"checkpoint_steps": 3}
        content["models"] = {name: content["models"][name] for name in ("intentrec", "popularity")}
        content |= {"name": self.name, "storage": self.storage, "extensions": ["benchmarks.soak_worker"]}
        content["cluster"] = {"workers": 2, "max_failures": 1000}
        del content["recommend"]
        self.config = self.folder / f"{self.name}.yaml"
        self.config.write_text(yaml.safe_dump(content))
        self.began = time.monotonic()

    @property
    def checkpoints(self) -> str:
        return join(self.storage, self.name, "models", "intentrec", "checkpoints")

    def start(self) -> None:
        command = [sys.executable, "-m", "cluster.cli", "run", str(self.config)]
        env = os.environ | self.environment | {"SOAK": str(self.watched)}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
        self.starts.append(None)

    def ended(self) -> bool:
        """Whether it has ended well; started again where it has ended otherwise."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return False
        self.starts[-1] = status
        if status != 0:
            time.sleep(2)
            self.start()
        return status == 0

    def to_its_end(self) -> None:
        self.start()
        while not self.ended():
            time.sleep(0.5)

    def phases(self) -> dict[int, str]:
        """In what each worker that lives is."""
        found = {}
        for path in self.watched.glob("*.phase"):
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(int(path.stem)).status() != psutil.STATUS_ZOMBIE and (phase := path.read_text()):
                    found[int(path.stem)] = phase
        return found

    def at_work(self, without: set[int], seconds: float = STARTING) -> float | None:
        """Seconds until two workers that are not among `without` are at work; None where it has ended before."""
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            working = {pid for pid, phase in self.phases().items() if phase in PHASES} - without
            if len(working) >= 2:
                return time.monotonic() - began
            if self.ended():
                return None
            time.sleep(0.05)
        raise TimeoutError(f"no workers in {seconds:g} s: {self.folder}/{self.name}.log")

    def strike(self, fault: str, do: Callable[[], str]) -> None:
        """`do` something, that says in what the workers were."""
        assert self.process is not None
        before = set(self.phases())
        phase = do()
        when = time.monotonic() - self.began
        stopped = fault in sum(OF_STORAGE.values(), ())
        seconds = None if stopped else self.at_work(before)
        self.faults.append((when, fault, phase, seconds))
        print(f"{when:7.0f} s  {fault}, in {phase or '?'}; at work again after {seconds}", file=sys.stderr, flush=True)

    def kill_worker(self, chance: random.Random, wanted: str | None = None) -> str:
        """Once a worker is in what is `wanted`, and some moments later."""
        while not self.ended():
            found = {pid: phase for pid, phase in self.phases().items() if wanted in (None, phase)}
            if not found and wanted in PHASES[1:3] and "evaluation" in self.phases().values():
                wanted = None  # training is over
            if found:
                time.sleep(chance.uniform(0, 4.0 if wanted in (None, "step") else 0.03))
                pid = chance.choice(sorted(found))
                phase = self.phases().get(pid, "")
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return phase
            time.sleep(0.002)
        return ""

    def kill(self, *kinds: str) -> str:
        assert self.process is not None
        phases = ", ".join(sorted(set(self.phases().values())))
        driver = psutil.Process(self.process.pid)
        for process in [driver, *driver.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                if kind_of(process) in kinds:
                    process.kill()
        return phases

    def results(self) -> dict[str, object]:
        found = json.loads(read_text(join(self.storage, self.name, "results.json")))
        return {name: model["metrics"] for name, model in found["models"].items()}


def away(store: ObjectStore, silent: bool) -> None:
    assert store.process is not None
    if silent:
        os.killpg(store.process.pid, signal.SIGSTOP)
        time.sleep(AWAY)
        os.killpg(store.process.pid, signal.SIGCONT)
        return
    store.stop(kill=True)
    time.sleep(AWAY)
    store.start(600)


def full(disk: SmallDisk) -> None:
    disk.fill()
    time.sleep(AWAY)
    disk.make_room()


def disturb(run: Soak, options: argparse.Namespace, store: ObjectStore, disk: SmallDisk, kind: str) -> None:
    """Run it to its end, with a fault now and then."""
    chance = random.Random(options.seed)
    doings: dict[str, Callable[[], object]] = {
        "s3 away": lambda: away(store, False),
        "s3 silent": lambda: away(store, True),
        "disk full": lambda: full(disk),
    }
    killed = {"driver": ("driver",), "raylet": ("raylet",), "ray": ("raylet", "gcs_server", "driver")}
    run.start()
    run.at_work(set(), 600)
    possible = [each for each in options.faults if each in ("worker", *killed)]
    possible += [each for each in OF_STORAGE[kind] if each.split()[0] in options.faults]
    in_evaluation = options.kills // 6 if options.faults == ["worker"] else 0
    number = 0
    while not run.ended() and (not options.kills or number < options.kills):
        if options.kills:
            fault = chance.choice(possible)
            wanted = "evaluation" if number >= options.kills - in_evaluation else chance.choice(PHASES[:3])
        else:
            time.sleep(chance.uniform(0.5, 1.5) * options.every)
            fault = chance.choice(possible)
            wanted = None
        if run.ended():
            break
        number += 1
        if fault == "worker":
            run.strike(fault, lambda wanted=wanted: run.kill_worker(chance, wanted))  # type: ignore[misc]
        elif fault in killed:
            time.sleep(chance.uniform(0, 3))
            run.strike(fault, lambda fault=fault: run.kill(*killed[fault]))  # type: ignore[misc]
        else:
            phases = ", ".join(sorted(set(run.phases().values())))
            run.strike(fault, lambda fault=fault, phases=phases: (doings[fault](), phases)[1])  # type: ignore[misc]
    while not run.ended():
        time.sleep(0.5)


def report(kind: str, undisturbed: Soak, run: Soak, looks: Looks, left: list[str]) -> tuple[str, bool]:
    """One storage's section, and whether all is well."""
    found = differences(run.checkpoints, undisturbed.checkpoints)
    if run.results() != undisturbed.results():
        found.append("results.json")
    epochs, again = rows_of(run.watched)
    expected, _ = rows_of(undisturbed.watched)
    whole = [epoch for epoch in range(run.epochs) if epochs[epoch] == expected[epoch] == expected[0]]
    once = all(count == 1 for count in expected[0].values())
    lasted, markers = time.monotonic() - run.began, Markers(run.checkpoints)
    changed = [name for name in markers.complete() if "base" in markers.marker(name)]
    lines = [
        f"### {'An S3 server' if kind == 's3' else 'A disk'}",
        "",
        f"- ended by itself after {lasted / 60:.1f} minutes and {len(run.faults)} faults; its {len(run.starts)} starts "
        f"ended with status {', '.join(map(str, run.starts))}",
        f"- against the undisturbed run: {'the same bits' if not found else 'DIFFERENT: ' + ', '.join(found)}",
        f"- of the {len(markers.complete())} last checkpoints {len(changed)} have the rows alone that had changed",
        f"- sequences given once in {len(whole)} of {run.epochs} epochs, {sum(expected[0].values()):,} in each"
        f"{'' if once else ' (some are the same)'}; {again:,} batches were given again after a fault",
        f"- left behind: {', '.join(left) or 'nothing'}",
        "",
        "| second | fault | workers were in | at work again after |",
        "|---|---|---|---|",
    ]
    for when, fault, phase, seconds in run.faults:
        lines.append(f"| {when:.0f} | {fault} | {phase} | {'' if seconds is None else f'{seconds:.0f} s'} |")
    lines += ["", "| process | figure | mean | growth in an hour |", "|---|---|---|---|"]
    lines += [f"| {who} | {figure} | {mean:,.1f} | {growth:+,.1f} |" for who, figure, mean, growth in looks.slopes()]
    return "\n".join(lines), not found and len(whole) == run.epochs and not left


def soak(options: argparse.Namespace, folder: Path, store: ObjectStore, disk: SmallDisk) -> bool:
    storages = {"s3": "s3://soak", "disk": str(disk.folder / "runs")}
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = store.environment | {"TMPDIR": str(temporary), "RAY_raylet_start_wait_time_s": "300"}
    good, epochs = True, options.epochs
    if not epochs:
        seconds = 0.0
        for kind in options.storage:
            trial = Soak(folder, storages[kind], "trial", 4, environment, options.items)
            trial.to_its_end()
            markers = Markers(trial.checkpoints)
            seconds += markers.progress(str(markers.latest())).seconds / 4
        epochs = max(int(0.65 * 60 * options.minutes / seconds), 4)
    undisturbed = Soak(folder, storages[options.storage[-1]], "undisturbed", epochs, environment, options.items)
    undisturbed.to_its_end()
    for kind in options.storage:
        looks, run = Looks(), Soak(folder, storages[kind], "disturbed", epochs, environment, options.items)
        disturb(run, options, store, disk, kind)
        looks.close()
        left = [f"process {kind_of(each)}" for each in left_behind()]
        left += [path.name for path in temporary.iterdir() if path.name != "ray"]
        left += left_in(run.checkpoints)
        text, well = report(kind, undisturbed, run, looks, left)
        good = good and well
        print(text, end="\n\n", flush=True)
        shutil.rmtree(run.watched)
    shutil.rmtree(undisturbed.watched)
    return good


def left_behind() -> list[psutil.Process]:
    """What is left of the runs some seconds after their end; also of those that have lost their parents."""
    time.sleep(15)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "SOAK" in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="that the disturbed runs take, about")
    parser.add_argument("--every", type=float, default=60, help="seconds between faults, about")
    parser.add_argument(
        "--kills", type=int, default=0, help="so many faults, each once the one before is recovered from"
    )
    parser.add_argument("--epochs", type=int, help="by default as many as the minutes take")
    parser.add_argument("--faults", type=lambda text: text.split(","), help=f"of {','.join(FAULTS)}")
    parser.add_argument("--storage", type=lambda text: text.split(","), default=["s3", "disk"], help="s3, disk or both")
    parser.add_argument("--items", type=int, default=0, help="of a catalogue of which each step trains a part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.faults = options.faults or (["worker"] if options.kills else list(FAULTS))
    options.epochs = options.epochs or options.kills or None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    store = ObjectStore(folder / "s3")
    disk = SmallDisk(folder / "disk", 64)
    try:
        store.start(600)
        os.environ.update(store.environment)
        store.make_bucket("soak", 120)
        facts = header("soak")
        print(f"`{facts['command']}`, {facts['date']}, {facts['machine']}\n", flush=True)
        good = soak(options, folder, store, disk)
    finally:
        for process in psutil.Process().children(recursive=True):
            process.kill()
        store.stop()
        disk.close()
    if good:
        shutil.rmtree(folder)
    sys.exit(None if good else f"see {folder}")


if __name__ == "__main__":
    main()
