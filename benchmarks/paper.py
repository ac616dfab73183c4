"""The paper's two tables on one log: its models, its ablations and each intent alone, with several seeds.

    python -m benchmarks.paper configs/ml-100k.yaml --seeds 3
    python -m benchmarks.paper configs/ml-100k.yaml --rows lstm,gru import.source=...
    python -m benchmarks.paper configs/ml-100k.yaml --set transact.mask=null
    make results                                                # docs/results.md of what is kept

All trained rows have the same reader, loss, epochs and other keys of `train`; dropout, window and a `train` of its own
are of the config's model `paper`, or of its first IntentRec. What the config has that is not trained is a row, too,
with one seed. Every row with every seed is an `intentrec run` of its own on the same prepared data, in
`storage`/<name>-paper: what is there is not done again, so the same command goes on where it was stopped, and with more
rows or seeds it adds them. After each, docs/results/paper/<name>.json is written anew: it is small, and to be
committed. Rows that it has of another `storage` stay, as long as config, data and protocol are the same; what they are
against IntentRec only where that is the same run. `storage` has to be a folder of this machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.paper_tables import FIRST, kinds_of_rows
from benchmarks.seeds import COPY, together
from benchmarks.training import header, rounded
from cluster.config import Config
from ingest.errors import InputError
from ingest.settings import load_content, load_settings

KEPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "paper"
METRICS = ("HR@10", "NDCG@10", "MRR")
TIMES = ("training", "latency", "seconds")
FACTS = ("kind", "inputs", "parameters", "table_parameters", "best_epoch", *TIMES)


def sections(config: Config, content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every row's section of `models`; `changes`: keys of a row's own, by row.

    Raises `InputError` where a row of `changes` is none, and where the config has no IntentRec to take keys from.
    """
    models = content["models"]
    like = models.get("paper") or next((model for model in models.values() if model["kind"] == FIRST), None)
    if like is None:
        raise InputError(f"models: takes a model `paper` or one of kind {FIRST}, got {', '.join(models)}")
    common = {key: like[key] for key in ("dropout", "train") if key in like}
    found = {}
    for row, section in kinds_of_rows([feature.name for feature in config.data.intents]).items():
        own = {"window": like["window"]} if section["kind"] in ("intentrec", "deep") and "window" in like else {}
        if section["kind"] == "transact" and config.data.time_unit == "position":
            own["mask"] = None
        found[row] = common | own | section | changes.get(row, {})
    if others := changes.keys() - found.keys():
        raise InputError(f"--set: takes a row, {', '.join(found)}; got {', '.join(others)}")
    return found


def baselines(config: Config, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the config has that is not trained and does not know the rule of a made log: rows that have one seed."""
    names = (name for name in config.models if name not in config.neural and config.models[name].kind != "rule")
    return {name: content["models"][name] for name in names}


class Paper:
    """The rows of one config: what is run and what is kept."""

    def __init__(self, source: str, overrides: list[str], options: argparse.Namespace) -> None:
        self.content = load_content(source, overrides)
        self.config = load_settings(Config, source, overrides)
        self.name, self.options = self.config.name, options
        words = [word for word in overrides if not word.rpartition("=")[2].startswith("/")]
        words += [part for word in options.set for part in ("--set", word)] + ["--no-ray"] * options.no_ray
        self.command = shlex.join(["python", "-m", "benchmarks.paper", source, *words])
        changes: dict[str, dict[str, Any]] = {}
        for word in options.set:
            (row, _, key), value = word.partition("=")[0].partition("."), word.partition("=")[2]
            changes.setdefault(row, {})[key] = yaml.safe_load(value)
        self.baselines = baselines(self.config, self.content)
        self.rows = sections(self.config, self.content, changes) | self.baselines
        self.folder = Path(self.config.storage, f"{self.name}-paper")
        self.kept, self.page = self.folder / "kept", Path(options.kept, f"{self.name}.json")
        self.before = json.loads(self.page.read_text()) if self.page.exists() else {}

    def run(self, row: str, seed: int) -> None:
        """Train and evaluate one row with one seed, unless that is done."""
        name = f"{row}{COPY}{seed}"
        done = self.kept / f"{name}.json"
        if done.exists():
            return
        models = {name: self.rows[row]}
        if row not in self.baselines:
            train = {**self.rows[row].get("train", {}), "seed": self.config.train.seed + seed}
            models = {name: {**self.rows[row], "train": train}}
        content = {key: value for key, value in self.content.items() if key not in ("recommend", "tune")}
        content |= {"name": f"{self.name}-paper", "models": models, "storage": self.config.storage}
        self.kept.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        command = [sys.executable, "-m", "cluster.cli", "run", str(path)]
        status = subprocess.run(command + ["--no-ray"] * self.options.no_ray, stdout=sys.stderr).returncode
        if status:
            sys.exit(f"{' '.join(command)} ended with status {status}")
        targets = self.kept / "targets" / name
        shutil.rmtree(targets, ignore_errors=True)
        targets.parent.mkdir(exist_ok=True)
        shutil.move(self.folder / "targets" / name, targets)
        if row not in self.baselines:
            shutil.rmtree(self.folder / "models" / name)
        results = self.folder / "results.json"
        found = json.loads(results.read_text()) | {"row": self.rows[row], "ran": header("paper")}
        if self.options.busy:
            found["models"][name] |= dict.fromkeys(TIMES)
        done.write_text(json.dumps(found))
        results.unlink()

    def refuse_others(self, rows: Iterable[str]) -> None:
        """Refuse kept rows that are not among the `rows` to be run, and are of another section than now."""
        for row in self.before.get("models", {}).keys() - rows:
            was, now = self.before["rows"][row], self.rows.get(row)
            if was != now:
                raise InputError(
                    f"{self.page}: {row} there is of {was}, and the row now is {now}: run it, too, or remove it there"
                )

    def with_before(self, summary: dict[str, Any]) -> dict[str, Any]:
        """`summary`, and the rows that are kept of another storage: those that have more seeds, or are not here."""
        ours, theirs = summary["models"], self.before.get("models", {})
        stay = {
            row: model
            for row, model in theirs.items()
            if self.before["rows"][row] == self.rows.get(row)
            and (row not in ours or len(model["seeds"]) > len(ours[row]["seeds"]))
        }
        for name in ("protocol", "data", "epochs") if stay else ():
            if self.before[name] != summary[name]:
                raise InputError(
                    f"{self.page}: {', '.join(stay)} there have {name} {self.before[name]}, and it is {summary[name]} "
                    "now: run them, too, or remove that file"
                )
        models = ours | stay
        first = models.get(FIRST)
        versus = summary["versus"] if first == ours.get(FIRST) else {}
        if first == theirs.get(FIRST):
            versus = versus | {row: found for row, found in self.before.get("versus", {}).items() if row in stay}
        order = {row: models[row] for row in (FIRST, *self.rows) if row in models}
        return summary | {"models": order, "versus": versus}

    def summary(self) -> dict[str, Any]:
        """All that is kept of this log in this storage; the rows that were not run are missing."""
        found: dict[str, Any] = {}
        for row, section in self.rows.items():
            paths = self.kept.glob(f"{row}{COPY}*.json")
            for path in sorted(paths, key=lambda path: int(path.stem.rpartition("-")[2])):
                results = json.loads(path.read_text())
                if results["row"] != section:
                    raise InputError(
                        f"{path}: is of {results['row']}, and the row now is {section}: remove that file to run it anew"
                    )
                found[path.stem] = results
        models = {name: each["models"][name] for name, each in found.items()}
        first = {name: model for name, model in models.items() if name.startswith(f"{FIRST}{COPY}")}
        results = {**next(iter(found.values())), "models": first | models, "segments": []}
        workers, resamples = self.config.cluster.workers.max, self.config.evaluate.resamples
        merged = together(results, str(self.kept / "targets"), workers, resamples)
        ran: dict[str, Any] = {}
        for name, each in found.items():
            row, _, seed = name.partition(COPY)
            of = ran.setdefault(row, {"seeds": [], "commits": []})
            of["seeds"].append(self.config.train.seed + int(seed))
            of["commits"] = list(dict.fromkeys([*of["commits"], each["ran"]["commit"]]))
        newest = max((each["ran"] for each in found.values()), key=lambda header: header["date"])
        return newest | {
            "command": self.command,
            "config": self.name,
            "protocol": results["protocol"],
            "data": {name: results["data"][name] for name in ("users", "items", "events")},
            "epochs": self.rows[FIRST].get("train", {}).get("epochs", self.config.train.epochs),
            "intents": [feature.name for feature in self.config.data.intents],
            "baselines": list(self.baselines),
            "majority": rounded(results["majority"]),
            "rows": self.rows,
            "models": {row: rounded(_facts(model) | ran[row]) for row, model in merged["models"].items()},
            "versus": rounded(merged["versus"]) if first else {},
        }


def _facts(model: Mapping[str, Any]) -> dict[str, Any]:
    of = {name: model.get(name) for name in FACTS}
    for name in ("metrics", "deviation"):
        of[name] = model[name] and {metric: model[name][metric] for metric in METRICS}
    return of | {name: model[name] for name in ("intents", "intents_deviation")}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="such as configs/ml-100k.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="what is laid over it")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from the config's on")
    parser.add_argument("--rows", type=lambda names: names.split(","), help="such as lstm,gru; by default all")
    parser.add_argument("--set", action="append", default=[], metavar="row.key=value", help="a key of one row's own")
    parser.add_argument("--no-ray", action="store_true", help="one process, as in `intentrec run`")
    parser.add_argument("--busy", action="store_true", help="the machine has other work: keep no times of these rows")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="the folder of what is kept; by default docs/results/paper"
    )
    options = parser.parse_intermixed_args(words)
    try:
        _run(options, parser)
    except InputError as error:
        sys.exit(f"benchmarks.paper: {error}")


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    paper = Paper(options.config, options.overrides, options)
    rows = options.rows or list(paper.rows)
    if others := [row for row in rows if row not in paper.rows]:
        parser.error(f"--rows takes {', '.join(paper.rows)}; got {', '.join(others)}")
    paper.refuse_others(rows)
    options.kept.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for row in sorted(rows, key=lambda row: (row != FIRST, row not in paper.baselines)):
            if seed and row in paper.baselines:
                continue
            paper.run(row, seed)
            paper.page.write_text(json.dumps(paper.with_before(paper.summary()), indent=1) + "\n")
            print(f"{row}, seed {seed}: {paper.page}", file=sys.stderr)


if __name__ == "__main__":
    main()
