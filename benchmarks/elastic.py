"""Two workers, one, and two again, by nodes that are lost and added, against undisturbed seeds. Prints Markdown.

    python -m benchmarks.elastic [--seeds 3] [--disturbed 1]

IntentRec is trained on a made log by two workers on a Ray cluster of two nodes, with several seeds. Then with the first
ones again: once a quarter of the steps is taken all processes of one node are killed; the worker of the other goes on
alone, and after as many rows again a node is added: once with batches of a worker that stay as they are, and once
with twice the tokens while it is alone (`train.reader.most_tokens`). The last epoch's mean training loss and the last
validation are compared with what the seeds differ by.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.fault_marks import MARKS, read_marks
from benchmarks.training import header
from tests.cluster.two_nodes import NODE, lose_node, two_nodes
from trainer.progress import Markers, Progress
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

EPOCHS = 6
ROOT = Path(__file__).resolve().parents[1]


def config_of(folder: Path, users: int) -> Path:
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["simulate"] |= {"users": users, "items": 400, "processes": 2}
    content["train"] |= {"epochs": EPOCHS, "patience": EPOCHS, "checkpoint_steps": 20, "log_steps": 5}
    content |= {"name": "run", "storage": str(folder), "extensions": ["benchmarks.fault_marks"]}
    content["models"] = {"intentrec": content["models"]["paper"]}
    content["cluster"] = {"workers": {"min": 1, "max": 2}}
    path = folder / "elastic.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Run:
    """A training with one seed on a cluster of its own."""

    def __init__(self, config: Path, name: str, seed: int, most_tokens: int | None = None) -> None:
        self.most_tokens = most_tokens
        self.model = config.parent / "run" / "models" / name
        self.log = config.parent / f"{name}.log"
        section = yaml.safe_load(config.read_text())["models"]["intentrec"]
        train = {"seed": seed, "reader": {"most_tokens": most_tokens}}
        models = json.dumps({name: {**section, "train": train}})
        self.command = [sys.executable, "-m", "cluster.cli", "train", str(config), f"models={models}"]

    @contextmanager
    def begun(self) -> Iterator[Cluster]:
        """The cluster on which it trains; at the end it has ended, or is killed."""
        with two_nodes() as nodes, self.log.open("w") as log:
            command = [*self.command, f"cluster.address={nodes.address}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            try:
                yield nodes
                if self.process.wait():
                    sys.exit(self.log.read_text()[-3000:])
            finally:
                self.process.kill()

    def steps(self) -> dict[int, list[float]]:
        """When the steps of each worker ended, by its process."""
        found: dict[int, list[float]] = {}
        for mark in read_marks(self.model / MARKS):
            if mark["what"] == "step ends":
                found.setdefault(mark["pid"], []).append(mark["at"])
        return found

    def wait(self, reached: Callable[[dict[int, list[float]]], bool]) -> dict[int, list[float]]:
        while not reached(found := self.steps()):
            if self.process.poll() is not None:
                sys.exit(f"ended before its time: {self.log.read_text()[-3000:]}")
            time.sleep(0.1)
        return found

    def progress(self) -> Progress:
        markers = Markers(str(self.model / "checkpoints"))
        return markers.progress(str(markers.latest()))

    def ends(self) -> dict[str, float]:
        """The last epoch's mean training loss, and the last validation."""
        progress = self.progress()
        ends = re.findall(r"epoch (\d+)/\d+: loss .*, step ([\d,]+),", self.log.read_text())
        step_of = {int(epoch): int(step.replace(",", "")) for epoch, step in ends}
        before, (last, metric) = step_of[max(step_of) - 1], progress.validation_curve[-1]
        if last != max(step_of):
            sys.exit(f"{self.log}: its last epoch is {max(step_of)}, that of the checkpoint {last}")
        return {"loss": fmean(loss for step, loss in progress.train_curve if step > before), "validation": metric}

    def disturbed(self, steps: int) -> dict[str, float]:
        """Lose a node after a quarter of `steps`, add one after half of the rows; seconds to the next step."""
        with self.begun() as nodes:
            before = self.wait(lambda found: len(found) == 2 and min(map(len, found.values())) > steps // 4)
            alone_for = steps // 4 if self.most_tokens else steps // 2
            lost = time.time()
            lose_node(nodes)
            alone = self.wait(lambda found: any(len(found[pid]) > alone_for for pid in found.keys() - before))
            added = time.time()
            nodes.add_node(**NODE)
            both = self.wait(lambda found: len(found.keys() - alone) == 2)
        first = min(both[pid][0] for pid in both.keys() - alone)
        return {"lost": min(alone[pid][0] for pid in alone.keys() - before) - lost, "added": first - added}


def measure(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    config = config_of(folder, options.users)
    for words in (["simulate"], ["prepare", "--no-ray"]):
        command = [sys.executable, "-m", "cluster.cli", words[0], str(config), *words[1:]]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
    seeds = []
    yield "| seed | workers | steps | loss of the last epoch | validation | node lost: next step | added: next step |"
    yield "|---|---|---|---|---|---|---|"
    for seed in range(options.seeds):
        run = Run(config, f"undisturbed-{seed}", seed)
        with run.begun():
            pass
        seeds.append(run.ends())
        steps = run.progress().step
        yield f"| {seed} | 2 | {steps:,} | {seeds[-1]['loss']:.4f} | {seeds[-1]['validation']:.4f} | | |"
    off: dict[str, list[float]] = {}
    tokens = TrainConfig.model_validate(yaml.safe_load(config.read_text())["train"]).reader.tokens
    for seed, (kind, most) in itertools.product(
        range(options.disturbed), {"": None, ", more tokens": 2 * tokens}.items()
    ):
        run = Run(config, f"disturbed-{seed}-{most}", seed, most)
        seconds, ends = run.disturbed(steps), run.ends()
        yield (
            f"| {seed} | 2, 1{kind}, 2 | {run.progress().step:,} | {ends['loss']:.4f} | {ends['validation']:.4f} | "
            f"{seconds['lost']:.0f} s | {seconds['added']:.0f} s |"
        )
        for figure, value in ends.items():
            off.setdefault(figure, []).append(value - fmean(each[figure] for each in seeds))
    for figure, values in off.items():
        spread = stdev(each[figure] for each in seeds)
        told = ", ".join(f"{value / spread:+.1f}" for value in values)
        yield f"\n{figure}: a seed's standard deviation is {spread:.4f}; the disturbed are off the mean by {told} of it"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.elastic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trained undisturbed, at least two")
    parser.add_argument("--disturbed", type=int, default=1, help="of them twice more, with a node lost and added")
    parser.add_argument("--users", type=int, default=2500)
    options = parser.parse_args()
    facts: dict[str, Any] = header("elastic")
    print(f"`{facts['command']}`, {facts['date']}, {facts['machine']}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="elastic-", dir="/tmp") as folder:
        for line in measure(options, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
