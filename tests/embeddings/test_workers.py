"""Exchanges between workers, against what they stand for, on up to seven of them."""

from __future__ import annotations

import pytest
import torch
from torchrec.distributed.sharding_plan import _calculate_rw_shard_sizes_and_offsets

from embeddings.workers import Worker, gather_rows, lockstep_batches, own_rows, raise_together
from ingest.errors import InputError
from tests.threads import on_threads


def test_slices_are_cut_where_torchrec_cuts_a_row_wise_table() -> None:
    """Nine rows on four workers among them: 3, 3, 3 and none."""
    for workers in range(1, 18):
        for rows in range(1, 70):
            sizes, offsets = _calculate_rw_shard_sizes_and_offsets(rows, workers, 8)
            for rank in range(workers):
                begin, end = own_rows(rows, rank, workers)
                assert end - begin == sizes[rank][0]
                assert begin == min(offsets[rank][0], rows)


@pytest.mark.parametrize("sizes", [[3], [2, 0], [0, 5, 1], [0, 0, 0, 0], [1, 2, 3, 0, 5, 6, 7]])
def test_rows_are_gathered_by_rank(sizes: list[int]) -> None:
    rows = torch.arange(2 * sum(sizes), dtype=torch.float64).view(-1, 2)
    parts = rows.split(sizes)
    for gathered, counted in on_threads(len(sizes), lambda worker: gather_rows(parts[worker.rank])):
        assert torch.equal(gathered, rows)
        assert counted == sizes


@pytest.mark.parametrize("sizes", [[3], [2, 0], [0, 5, 1], [0, 0, 0]])
def test_workers_step_together_until_all_are_through(sizes: list[int]) -> None:
    """With the sums of what each has, an empty batch counting what it holds itself."""

    def walk(worker: Worker) -> list[tuple[int, list[float]]]:
        own = iter([10 * worker.rank + step for step in range(sizes[worker.rank])])
        return list(lockstep_batches(own, -1, worker, lambda batch: torch.tensor([1.0, batch])))

    walked = on_threads(len(sizes), walk)
    for rank, steps in enumerate(walked):
        assert [batch for batch, _ in steps] == [
            10 * rank + step if step < sizes[rank] else -1 for step in range(max(sizes))
        ]
    for step in zip(*walked, strict=True):
        assert all(sums == [len(sizes), sum(batch for batch, _ in step)] for _, sums in step)


def test_the_next_batch_is_counted_before_one_is_used() -> None:
    def walk(worker: Worker) -> list[str]:
        events: list[str] = []

        def counts(batch: int) -> torch.Tensor:
            events.append(f"counted {batch}")
            return torch.zeros(1)

        for batch, _ in lockstep_batches(iter(range(2 + worker.rank)), -1, worker, counts):
            events.append(f"used {batch}")
        return events

    shorter, longer = on_threads(2, walk)
    assert longer == ["counted 0", "counted 1", "used 0", "counted 2", "used 1", "counted -1", "used 2"]
    assert shorter == ["counted 0", "counted 1", "used 0", "counted -1", "used 1", "counted -1", "used -1"]


def raised(errors: list[Exception | None]) -> list[str]:
    """What each worker raises where each has one of `errors`."""

    def fail(worker: Worker) -> str:
        try:
            raise_together(errors[worker.rank])
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return on_threads(len(errors), fail)


def test_what_fails_on_one_worker_is_raised_by_all_as_what_it_is() -> None:
    lost, refused = ConnectionResetError("peer is gone"), InputError("disk: full")
    assert raised([None, None, None]) == ["", "", ""]
    told = "RuntimeError: worker 1: ConnectionResetError: peer is gone"
    assert raised([None, lost, None]) == [told, "ConnectionResetError: peer is gone", told]
    assert raised([lost, None, refused]) == 3 * ["InputError: disk: full"]
