"""Bytes that training sends between workers.

    python -m benchmarks.traffic [CONFIG] [key=value ...]    two processes, counted, against formulas and planner: JSON
    python -m benchmarks.traffic --table                     8, 64 and 512 GPUs on paper: Markdown

The formulas are in benchmarks/collectives.py, the assumptions of the table in benchmarks/clusters.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.clusters import Hardware, everything
from benchmarks.collectives import GRADIENTS, IDS, ROWS, Load, bytes_per_step, counted_steps, load_of, on_wire
from benchmarks.training import Case, header, prepared
from embeddings.table_config import ITEM, TableConfig
from embeddings.workers import Worker, gather_objects
from trainer.loop import Run, Trainer, Validation
from trainer.step import Step

SMALL = ["simulate.users=1000", "train.reader.tokens=2048"]
"""Laid over the config before what the command line says."""
TABLES = [ITEM, "action", "device", "genres", "content_type", "release_age"]
SETTINGS: dict[str, dict[str, Any]] = {
    "row_wise, sampled": {
        "tables": {"sharding": dict.fromkeys(TABLES, "row_wise")},
        "loss": {"kind": "sampled", "negatives": 512},
    },
    "table_wise, in-batch": {
        "tables": {"sharding": dict.fromkeys(TABLES, "table_wise")},
        "loss": {"kind": "sampled", "sampling": "in_batch"},
    },
    "column_wise, sampled": {
        "tables": {"sharding": dict.fromkeys(TABLES, "column_wise"), "dimension": 256},
        "loss": {"kind": "sampled"},
    },
    "item row_wise, full softmax": {"loss": {"kind": "full"}},
    "fp16 rows": {"tables": {"communication": "fp16"}, "loss": {"kind": "sampled"}},
}
if "communication" not in TableConfig.model_fields:
    del SETTINGS["fp16 rows"]


def _measure(case: Case, changes: dict[str, Any], folder: str, worker: Worker, steps: int) -> dict[str, Any]:
    """This worker's counted and expected bytes in a few steps of a training."""
    merged = case.train.model_dump()
    for section, values in changes.items():
        merged[section] |= values
    run = Run("traffic", case.model, type(case.train).model_validate(merged), case.data, folder)
    trainer = Trainer(run, worker, lambda step: Validation({run.train.metric: 0.0}, {}, {}))
    with counted_steps(steps) as taken:
        trainer.fit()
    loads = [load_of(trainer.step, step.batch, step.number) for step in taken]
    return {
        "counted": _mean([step.counted.buffers for step in taken]),
        "formula": _mean([bytes_per_step(load) for load in loads]),
        "sent": _mean([step.counted.sent for step in taken]),
        "served": sum(step.counted.served for step in taken),
        "calls": taken[0].counted.calls,
        "planner": _planner_bytes(trainer.step, loads[-1]),
        "formula_of_last": bytes_per_step(loads[-1]),
    }


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in found[0]}


def _planner_bytes(step: Step, load: Load) -> dict[str, float]:
    """A worker's bytes as TorchRec's planner estimates them: its times at one byte a millisecond, mean over workers."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import ParameterConstraints, Topology
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

    from embeddings.tables import Tables

    constraints = {
        name: ParameterConstraints(
            sharding_types=[table.sharding],
            compute_kernels=["fused"],
            pooling_factors=[table.lookups],
            min_partition=load.dimension // table.columns,
        )
        for name, table in load.tables.items()
    }
    fast = {"hbm_mem_bw": 1e18, "ddr_mem_bw": 1e18, "hbm_to_ddr_mem_bw": 1e18}
    topology = Topology(
        world_size=load.workers,
        compute_device="cpu",
        local_world_size=load.workers,
        intra_host_bw=1.0,
        inter_host_bw=1.0,
        **fast,
    )
    plain = Tables(step.manifest, step.config.tables, len(load.tables) > 1, 0)
    options = EmbeddingEnumerator(topology, 1, constraints).enumerate(plain, [EmbeddingCollectionSharder()])
    found = dict.fromkeys((IDS, ROWS, GRADIENTS), 0.0)
    for shard in (shard for option in options for shard in option.shards):
        found[IDS] += shard.perf.input_dist_comms / load.workers
        found[ROWS] += shard.perf.fwd_comms / load.workers
        found[GRADIENTS] += shard.perf.bwd_comms / load.workers
    return found


def _work(rank: int, workers: int, case: Case, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    os.environ |= {name: str(value) for name, value in environment.items()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    worker = Worker(rank, workers)
    found = {}
    for number, (name, changes) in enumerate(SETTINGS.items()):
        ranks = gather_objects(_measure(case, changes, f"{folder}/{number}", worker, steps))
        found[name] = _compared(ranks, workers)
    if worker.first:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _compared(ranks: list[dict[str, Any]], workers: int) -> dict[str, Any]:
    """Mean over the workers, counted against the formulas, and the planner's estimate against the formulas."""
    counted, formula = (_mean([rank[key] for rank in ranks]) for key in ("counted", "formula"))
    planner, last = (_mean([rank[key] for rank in ranks]) for key in ("planner", "formula_of_last"))
    served = [rank["served"] for rank in ranks]
    exact = all(rank["counted"].get(name) == value for rank in ranks for name, value in rank["formula"].items())
    return {
        "collectives": {
            name: {
                "counted": counted[name],
                "formula": formula.get(name, 0.0),
                "ratio": round(counted[name] / formula[name], 6) if formula.get(name) else None,
                "calls": ranks[0]["calls"][name],
            }
            for name in counted
        },
        "equal_on_every_worker": exact,
        "sent_to_others": {
            name: {"counted": value, "formula": on_wire(formula, workers)[name]}
            for name, value in _mean([rank["sent"] for rank in ranks]).items()
            if value
        },
        "share_of_rows_served": [round(each / sum(served), 4) for each in served],
        "planner_over_formula": {name: round(planner[name] / last[name], 4) for name in planner},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All settings in two processes."""
    with prepared(options.config, [*SMALL, *options.overrides]) as config, tempfile.TemporaryDirectory() as folder:
        case = Case.of(config, options.model)
        torch.multiprocessing.spawn(_work, (options.workers, case, folder, options.steps), nprocs=options.workers)
        return {"workers": options.workers, "settings": json.loads(Path(folder, "found.json").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traffic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", default="intentrec")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="the table of docs/scaling.md")
    parser.add_argument("--items", type=int, default=100_000_000)
    parser.add_argument("--negatives", type=int, default=8192)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.table:
        print(everything(options.items, options.negatives, Hardware()))
    else:
        print(json.dumps(header("traffic") | measure(options), indent=1))


if __name__ == "__main__":
    main()
