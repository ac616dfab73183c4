"""A step on 8, 64 and 512 GPUs, on paper: bytes and time on the wire, time of matrix products, memory of the tables.

A node has 8 GPUs; inside it each sends `nvlink` bytes a second, between nodes `network`. Links are taken at their full
rate, and matrix products at `share` of the GPU's peak: both flatter, and alike. Popularity follows the law that
`log_uniform` negatives assume: item i of V has the probability log(1 + 1 / i) / log(1 + V).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from benchmarks import flops
from benchmarks.collectives import (
    COLUMN_WISE,
    DATA_PARALLEL,
    DENSE,
    GATHERED,
    GRADIENTS,
    IDS,
    ROW_WISE,
    ROWS,
    SOFTMAX,
    Load,
    TableLoad,
    bytes_per_step,
    load_of,
)
from benchmarks.training import Case, prepared
from cluster.config import Config
from embeddings.table_config import ITEM
from embeddings.workers import Worker, single_process
from ingest.data.items import load_items
from ingest.settings import load_settings
from trainer.models.registry import NeuralConfig

NODE = 8
SIZES = (8, 64, 512)
GB = 1e9
DEMO = ["simulate.users=5000", "simulate.days=40"]
"""The log whose batch has the features of configs/cluster.yaml."""


@dataclass(frozen=True)
class Hardware:
    """What is assumed of a GPU and its links."""

    name: str = "H100"
    peak: float = 989e12
    """bf16 matrix FLOP/s, dense."""
    share: float = 0.4
    nvlink: float = 450e9
    network: float = 50e9


@dataclass(frozen=True)
class Workload:
    """A batch of one GPU, and what its step costs wherever the tables are."""

    load: Load
    tokens: int
    targets: int
    sequences: int
    network_flops: float
    """Forward and backward, without the output layer."""
    items: int
    """Of the log that the batch is from."""
    busiest: float
    """How many times the mean the busiest of 8 workers would serve of that log's interactions, by blocks of items."""
    busiest_spread: float
    """The same by blocks of the item table's rows, as they lie."""

    @classmethod
    def of_config(cls, path: str = "configs/cluster.yaml", model: str = "intentrec") -> Workload:
        """The first batch of the demo's log under the model, dimension, batch and loss of `path`."""
        config = load_settings(Config, path, [])
        with prepared("configs/demo.yaml", DEMO) as demo, single_process(Worker().device):
            made = Case.of(demo, model)
            settings = config.models[model]
            assert isinstance(settings, NeuralConfig)
            case = replace(made, model=settings, train=config.train_config(model))
            worker = Worker()
            step, (batch,) = case.step(worker), case.batches(1, worker)
            needed = flops.total(flops.needed_flops(step, batch), outside=False)
            counts = load_items(case.data, case.manifest).counts
            places = step.spread.indices(torch.arange(len(counts))).numpy()
            return cls(
                load_of(step, batch, 0),
                batch.tokens,
                len(batch.target_Q),
                len(batch.lengths_B),
                needed,
                len(counts),
                _busiest_block(counts),
                _busiest_block(counts[places]),
            )


def _busiest_block(counts: np.ndarray) -> float:
    """What the busiest of 8 blocks has over the mean."""
    rows = -(-len(counts) // NODE)
    return NODE * max(counts[begin : begin + rows].sum() for begin in range(0, len(counts), rows)) / counts.sum()


@cache
def _law(items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First item, items and probability of each item, of many ranges of items of like popularity."""
    edges = np.unique(np.geomspace(1, items + 1, 200_000).astype(np.int64))
    edges[-1] = items + 1
    counts = np.diff(edges)
    return edges[:-1], counts, np.diff(np.log(edges)) / math.log(items + 1) / counts


def expected_distinct(draws: float, items: int, first: int | None = None) -> float:
    """Different items among `draws`; of the `first` most popular alone where given."""
    begins, counts, probability = _law(items)
    inside = counts if first is None else np.clip(first + 1 - begins, 0, counts)
    return float((inside * -np.expm1(-draws * probability)).sum())


@dataclass(frozen=True)
class Setting:
    """How the tables are laid out, and what travels."""

    name: str
    features: str = ROW_WISE
    value_bytes: int = 4
    columns: bool = False
    """Whether the item table is cut by columns, into as many shards of 4 or more as there are workers."""
    once: bool = True
    """Whether each worker asks for a row once in a step, as it does."""
    spread: bool = True
    """Whether popular rows are spread over the workers, as they are, in place of blocks of consecutive items."""


HALF = Setting("row-wise, fp16", value_bytes=2)
SETTINGS = (
    Setting("every table row-wise, fp32"),
    HALF,
    Setting("features data_parallel, fp16", features=DATA_PARALLEL, value_bytes=2),
    Setting("item table column-wise, fp16", value_bytes=2, columns=True),
    Setting("row-wise, fp16, were rows not spread", value_bytes=2, spread=False),
    Setting("row-wise, fp16, were each row asked for as often as needed", value_bytes=2, once=False),
    Setting("row-wise, fp16, were it neither", value_bytes=2, once=False, spread=False),
)


def draws_of(work: Workload, negatives: int) -> int:
    """Items that a step names: all targets but a sequence's last are tokens, too."""
    return work.tokens + work.sequences + negatives


def item_lookups(work: Workload, items: int, negatives: int, once: bool) -> float:
    """Rows of the item table that a worker asks for in a step."""
    if once:
        return expected_distinct(draws_of(work, negatives), items)
    return work.tokens + work.targets + expected_distinct(negatives, items)


def shards_of_columns(work: Workload, workers: int) -> int:
    """As many as there are workers, of 4 columns at least."""
    return min(workers, work.load.dimension // 4)


def load_on(work: Workload, workers: int, items: int, negatives: int, setting: Setting) -> Load:
    """The load of `work` with a catalogue of `items` on a cluster."""

    def change(name: str, table: TableLoad) -> TableLoad:
        if name != ITEM:
            return replace(table, sharding=setting.features)
        lookups = item_lookups(work, items, negatives, setting.once)
        shards = shards_of_columns(work, workers) if setting.columns else 1
        sharding = COLUMN_WISE if setting.columns else ROW_WISE
        return replace(table, rows=items, sharding=sharding, lookups=lookups, columns=shards)

    return replace(
        work.load.with_tables(change),
        workers=workers,
        most_targets=work.targets,
        all_targets=work.targets * workers,
        forward_bytes=setting.value_bytes,
        backward_bytes=setting.value_bytes,
    )


def busiest(work: Workload, workers: int, items: int, negatives: int, setting: Setting) -> float:
    """Rows that the busiest worker serves over the mean; a block of items is 1 / W of the catalogue."""
    if setting.columns:
        return workers / shards_of_columns(work, workers)
    draws = draws_of(work, negatives)
    block = -(-items // workers)
    if setting.spread:
        first = math.log(2) / math.log(items + 1)
        return 1.0 if setting.once else workers * first + 1 - first
    if setting.once:
        return workers * expected_distinct(draws, items, block) / expected_distinct(draws, items)
    return workers * math.log(block + 1) / math.log(items + 1)


def exchange_seconds(size: float, workers: int, hardware: Hardware) -> float:
    """Of an all-to-all of `size` bytes a worker: both kinds of links work at once."""
    inside = size * (min(workers, NODE) - 1) / workers / hardware.nvlink
    between = size * max(workers - NODE, 0) / workers / hardware.network
    return max(inside, between)


def gather_seconds(size: float, workers: int, hardware: Hardware) -> float:
    """Of an all-gather of `size` bytes: each GPU fetches an eighth of what other nodes have, and passes it on."""
    nodes = max(workers // NODE, 1)
    inside = size * (workers - 1) / workers / hardware.nvlink
    return max(inside, size / NODE * (nodes - 1) / nodes / hardware.network)


def reduce_seconds(size: float, workers: int, hardware: Hardware) -> float:
    """Of an all-reduce: scattered inside the node, an eighth of it between nodes, gathered."""
    nodes = max(workers // NODE, 1)
    inside = 2 * size * (NODE - 1) / NODE / hardware.nvlink
    return inside + 2 * size / NODE * (nodes - 1) / nodes / hardware.network


def step_row(work: Workload, workers: int, items: int, negatives: int, setting: Setting, hardware: Hardware) -> list:
    """A row of the table: see `steps_table`."""
    load = load_on(work, workers, items, negatives, setting)
    buffers = bytes_per_step(load)
    exchanged = buffers[IDS] + buffers[ROWS] + buffers[GRADIENTS]
    even = exchange_seconds(exchanged, workers, hardware)
    factor = busiest(work, workers, items, negatives, setting)
    reduced = reduce_seconds(buffers[DENSE], workers, hardware)
    needed = work.network_flops + 6.0 * work.targets * expected_distinct(negatives, items) * load.dimension
    products = needed / hardware.peak / hardware.share
    wire = even * factor + reduced
    bound = "matrix products" if wire < products else "busiest worker" if factor >= 2 else "wire"
    milliseconds = [1e3 * value for value in (even, reduced, even * factor, products)]
    return [workers, setting.name, exchanged / 1e6, buffers[DENSE] / 1e6, factor, *milliseconds, bound]


def markdown(head: list[str], rows: list[list]) -> str:
    """Numbers to three figures."""

    def text(value: object) -> str:
        return f"{float(f'{value:.3g}'):,.6g}" if isinstance(value, float) else str(value)

    lines = [head, ["---"] * len(head), *([text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps_table(work: Workload, items: int, negatives: int, hardware: Hardware) -> str:
    """Bytes and milliseconds of a step for each size and setting."""
    head = ["GPUs", "setting", "all-to-all MB", "all-reduce MB", "busiest / mean", "all-to-all ms", "all-reduce ms"]
    head += ["all-to-all ms, busiest", "products ms", "bound"]
    rows = [step_row(work, size, items, negatives, setting, hardware) for size in SIZES for setting in SETTINGS]
    return markdown(head, rows)


def influence_table(work: Workload, items: int, negatives: int) -> str:
    """The all-to-all's bytes on 64 GPUs when one thing is changed at a time, every table row-wise."""
    setting = SETTINGS[0]

    def exchanged(load: Load) -> float:
        buffers = bytes_per_step(load)
        return (buffers[IDS] + buffers[ROWS] + buffers[GRADIENTS]) / 1e6

    def of(name: str, count: int, chosen: Setting = setting, dimension: int = work.load.dimension) -> list:
        load = replace(load_on(work, 64, items, count, chosen), dimension=dimension)
        return [name, exchanged(load)]

    rows = [of("as it is", negatives), *(of(f"{count} negatives", count) for count in (512, 65_536))]
    rows += [of(f"dimension {size}", negatives, dimension=size) for size in (64, 256)]
    rows += [of("fp16 or bf16 rows", negatives, HALF)]
    rows += [of("item table in 32 shards of 4 columns", negatives, replace(setting, columns=True))]
    return markdown(["64 GPUs", "all-to-all MB"], rows)


def memory_table(work: Workload, items: int, negatives: int) -> str:
    """GB a GPU: a share of the item table, its optimizer's state, and rows on their way, forward and backward."""
    dimension, rows = work.load.dimension, []
    for workers in SIZES:
        share = items / workers
        lookups = item_lookups(work, items, negatives, once=True)
        moving = lookups * (8 + dimension * (2 * 4 + 2 * HALF.value_bytes)) / GB
        factor = busiest(work, workers, items, negatives, HALF)
        sizes = [share * dimension * 4, share * dimension * 2, share * 4, share * dimension * 8]
        rows.append([workers, *(size / GB for size in sizes), moving, moving * factor])
    head = ["GPUs", "rows fp32", "rows fp16", "row-wise Adagrad", "Adam", "on their way", "on their way, busiest"]
    return markdown(head, rows)


def full_table(work: Workload, items: int, hardware: Hardware) -> str:
    """The full softmax over a sharded catalogue: each worker scores all workers' queries on its slice, twice."""
    rows = []
    for workers in SIZES:
        load = replace(load_on(work, workers, items, 1, SETTINGS[0]), loss="full")
        buffers = bytes_per_step(load)
        wire = gather_seconds(buffers[GATHERED], workers, hardware)
        wire += reduce_seconds(buffers[SOFTMAX], workers, hardware)
        needed = 8.0 * work.targets * items * load.dimension
        products = needed / hardware.peak / hardware.share
        rows.append([workers, buffers[GATHERED] / GB, buffers[SOFTMAX] / GB, 1e3 * wire, 1e3 * products])
    return markdown(["GPUs", "all-gather GB", "all-reduce GB", "wire ms", "products ms"], rows)


def everything(items: int, negatives: int, hardware: Hardware) -> str:
    """All tables, with what they are for."""
    work = Workload.of_config()
    head = (
        f"{work.tokens:,} tokens and {work.targets:,} targets a GPU, dimension {work.load.dimension}, {items:,} items, "
        f"{negatives:,} negatives ({expected_distinct(negatives, items):,.0f} different), {work.load.dense:,} dense "
        f"parameters, {work.network_flops / 1e12:.3f} TFLOP of the network a step; {hardware}"
    )
    law = NODE * math.log(work.items / NODE + 1) / math.log(work.items + 1)
    head += (
        f"\n\nThe law of popularity on the demo's {work.items:,} items: the busiest of {NODE} workers serves {law:.2f} "
        f"times the mean of item rows; by the demo's own counts {work.busiest:.2f}, as rows lie "
        f"{work.busiest_spread:.2f}"
    )
    parts = {
        "A step": steps_table(work, items, negatives, hardware),
        "One change at a time": influence_table(work, items, negatives),
        "Memory of the item table, GB a GPU": memory_table(work, items, negatives),
        "Full softmax, 1,000,000 items": full_table(work, 1_000_000, hardware),
    }
    return "\n\n".join([head, *(f"{title}\n\n{table}" for title, table in parts.items())])
