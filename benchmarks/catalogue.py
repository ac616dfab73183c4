"""What ten million items cost a model whose scores know all that they can: preparing, a step, ranking, memory.

    python -m benchmarks.catalogue [--items 10000 10000000] [--rounds 3] [--batches 4] [--folder DIR]

For each number of items a log in which each of them is taken: histories of 100 interactions, items with genres, a
content type and a release date. After `prepare`, IntentRec's steps and ranking without any part and with all of them
take turns in one process, over batches of the same size; what is made once for an evaluation is timed apart. Prints
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.groups import peak_memory
from benchmarks.knowing import ranker_of, ranking_seconds, summed, variants
from benchmarks.memory import watch
from benchmarks.training import Case, Training, header, in_turns, ratio_of
from cluster.config import Config
from embeddings.workers import Worker, single_process
from ingest.settings import load_settings
from trainer.models.registry import Knowledge

HISTORY, PIECE = 100, 2**20
DAY = 86_400_000
FIRST = 1_700_000_000_000
CONFIG: dict[str, Any] = {
    "data": {
        "features": [
            {"name": "action", "intent": True},
            {"name": "device", "at_request": True},
            {"name": "genres", "kind": "categories", "of": "item", "intent": True},
            {"name": "content_type", "of": "item", "intent": True},
            {"name": "release_age", "kind": "elapsed", "of": "item", "column": "release_date", "bins": ["7d", "30d"]},
        ],
        "split": {"kind": "leave_one_out"},
    },
    "train": {
        "reader": {"tokens": 8192, "max_length": 200},
        "loss": {"kind": "sampled", "negatives": 1024},
        "tables": {"dimension": 64},
    },
    "models": {
        "intentrec": {
            "kind": "intentrec",
            "window": "1d",
            "knows": list(get_args(Knowledge)),
            "moments": {"step": "1d", "items": 64},
        }
    },
    "evaluate": {"filter_seen": False},
}


def write_log(folder: Path, items: int, events: int) -> None:
    """`events` of which the first `items` take each item once, the others popular ones; pieces of a million rows."""
    rng = np.random.default_rng(0)
    order, users = rng.permutation(items), max(events // HISTORY, 1)
    (folder / "events").mkdir(parents=True)
    for number, begin in enumerate(range(0, events, PIECE)):
        row = np.arange(begin, min(begin + PIECE, events))
        popular = np.expm1(rng.random(len(row)) * np.log1p(items)).astype(np.int64)
        columns = {
            "user_id": rng.integers(0, users, len(row)),
            "item_id": np.where(row < items, order[np.minimum(row, items - 1)], popular),
            "timestamp": pa.array(FIRST + rng.integers(0, 60 * DAY, len(row)), pa.timestamp("ms")),
            "action": pa.array(rng.integers(0, 4, len(row))).cast(pa.string()),
            "device": pa.array(rng.integers(0, 4, len(row))).cast(pa.string()),
        }
        pq.write_table(pa.table(columns), folder / "events" / f"{number:05}.parquet")
    (folder / "items").mkdir()
    for number, begin in enumerate(range(0, items, PIECE)):
        item = np.arange(begin, min(begin + PIECE, items))
        count = rng.integers(1, 4, len(item))
        offsets = pa.array(np.concatenate([[0], count.cumsum()]), pa.int32())
        genres = pa.array(rng.integers(0, 20, count.sum())).cast(pa.string())
        release = FIRST + rng.integers(-300 * DAY, 30 * DAY, len(item))
        columns = {
            "item_id": item,
            "genres": pa.ListArray.from_arrays(offsets, genres),
            "content_type": pa.array(rng.integers(0, 4, len(item))).cast(pa.string()),
            "release_date": pa.array(release, pa.timestamp("ms")),
        }
        pq.write_table(pa.table(columns), folder / "items" / f"{number:05}.parquet")


def prepare(folder: Path, items: int, events: int) -> tuple[Config, dict[str, Any]]:
    """The config of a log of so many items that is prepared in `folder`, and what preparing it took."""
    write_log(folder, items, events)
    content = {"name": "run", "storage": str(folder), **CONFIG}
    content["data"] = {**CONFIG["data"], "events": str(folder / "events"), "items": str(folder / "items")}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    took = watch([sys.executable, "-m", "cluster.cli", "prepare", str(path), "--no-ray"])
    if took.status:
        sys.exit(f"prepare ended with status {took.status}")
    return load_settings(Config, str(path), []), {"seconds": round(took.seconds, 1), "peak_gib": round(took.gib, 2)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    steps: dict[str, Callable[[], float]] = {}
    ranks: dict[str, Callable[[], float]] = {}
    trainings: dict[str, Training] = {}
    about: dict[str, Any] = {}
    made_in: dict[str, float] = {}
    made = {items: prepare(folder / str(items), items, max(items * 6 // 5, options.events)) for items in options.items}
    with single_process(torch.device("cpu")):
        worker = Worker()
        for items, (config, took) in made.items():
            case = Case.of(config, "intentrec")
            batches = case.batches(options.batches, worker)
            test = [batch for batch, _ in islice(case.reader(worker, "test", evaluate=True).epoch(0), 1)]
            for name, variant in variants(case).items():
                if name in ("none", "all"):
                    step = variant.step(worker)
                    training = trainings[f"{items} {name}"] = Training(step, cycle(batches))
                    steps[f"{items} {name}"] = partial(summed, training, len(batches))
                    began, seen = time.perf_counter(), config.evaluate.filter_seen
                    ranker = ranker_of(step, seen)  # once for an evaluation, whose steps are over
                    made_in[f"{items} {name}"] = round(time.perf_counter() - began, 2)
                    ranks[f"{items} {name}"] = partial(ranking_seconds, step, test, seen, ranker)
            about[str(items)] = {
                "prepare": took,
                "rows": case.manifest.items,
                "catalogue": case.manifest.catalogue,
                "tokens_a_batch": round(sum(batch.tokens for batch in batches) / len(batches)),
                "test_targets": sum(len(batch.target_Q) for batch in test),
                "peak_gib": round(peak_memory() / 2**30, 2),
            }
        found = {"step": in_turns(options.rounds, steps), "ranking": in_turns(options.rounds, ranks)}
    few, many = options.items
    pairs = [(f"{size} all", f"{size} none") for size in (few, many)]
    pairs += [(f"{many} {name}", f"{few} {name}") for name in ("none", "all")]
    return {
        "parts": variants(case)["all"].model.knows,
        "threads": torch.get_num_threads(),
        "logs": about,
        "peak_gib": round(peak_memory() / 2**30, 2),
        "ratios": {
            what: {f"{above} over {below}": ratio_of(sides[above], sides[below]) for above, below in pairs}
            for what, sides in found.items()
        },
        "seconds": {
            what: {name: round(statistics.median(each), 3) for name, each in sides.items()}
            for what, sides in found.items()
        },
        "ranker_made_in": made_in,
        "losses": {
            name: [round(training.losses[0], 3), round(training.losses[-1], 3)] for name, training in trainings.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs=2, default=[10_000, 10_000_000], metavar=("FEW", "MANY"))
    parser.add_argument("--events", type=int, default=1_000_000, help="at least; six for every five items")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="for the logs; by default one that goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        print(json.dumps(header("catalogue") | measure(options, Path(temporary)), indent=1))


if __name__ == "__main__":
    main()
