"""Preparing: events and items become vocabularies, a split, shards of per-user sequences and a manifest.

Three passes of tasks that do not depend on each other, so that they run on as many machines as a `Runner` has:

    partition    pieces of the log -> partitions by user, spilled         (ingest.prepare.partition)
    histories    a partition -> sorted, dropped, split and counted        (ingest.prepare.histories)
    encode       a partition -> shards of indices and numbers             (ingest.prepare.encode)

and between the last two vocabularies, item table and bins, put together from the partitions' counts. A task has one
partition in memory (`data.partition_events`), this process none: it sees files, row groups and sums. What comes out
depends on the input and the config alone, not on who did what. Interrupted, the same command goes on with what is
finished, in the folder `data.work`. The manifest is written last: a folder without one is not complete; one whose
manifest has the input's fingerprint is left as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from ingest.data.manifest import Manifest, Shard, SplitName, load_manifest, save_manifest
from ingest.data.schema import DataConfig
from ingest.errors import InputError, StorageError
from ingest.features.feature import PreparedFeature, kind_of
from ingest.features.number import Moments
from ingest.prepare.encode import count_ages, encode_partition, is_counted, sum_labels
from ingest.prepare.fit import BEFORE, fit_feature, fit_items, keep_base, merge_counts, publish_vocabulary
from ingest.prepare.histories import ITEM, build_histories, counts_of
from ingest.prepare.item_table import ITEMS, build_items
from ingest.prepare.log import event_features
from ingest.prepare.pairs import merge_pairs, pairs_of
from ingest.prepare.partition import Job, partition_piece
from ingest.prepare.report import (
    SPLITS,
    Counts,
    Log,
    Results,
    count,
    refuse_empty_split,
    refuse_intents_without_label,
    summary,
    warnings_of,
)
from ingest.prepare.split import begins_of
from ingest.prepare.survey import FILES_A_TASK, log_types, pieces_of, survey_files
from ingest.prepare.tasks import InThisProcess, Runner, Task, run_stage
from ingest.raw.files import find_files
from ingest.storage import (
    absolute,
    copy,
    exists,
    join,
    list_folders,
    open_filesystem,
    read_text,
    remove,
    write_text,
)

ALGORITHM = 8
"""Part of the fingerprint: raised when the same input gives other prepared data than before."""
CONTENT = (
    "manifest.json", "items.parquet", "vocab", "transitions", "activity", "activity_by", "successions",
    "train", "validation", "test", "rest",
)  # fmt: skip
WORK = "_work"
BEGUN = "_begun.json"
"""Names the work folder of the run that is not at its end."""
FEWEST_PARTITIONS = 8
"""A log of fewer partitions is prepared in this process: to start others takes longer."""
PARTITIONS_A_TASK = 32
"""Partitions whose counts are put together at a time."""


def prepare(
    config: DataConfig,
    destination: str,
    log: Log = print,
    runner: Runner | None = None,
    keep: Callable[[], str] = lambda: "",
) -> Manifest:
    """Prepare the log of `config` in the folder `destination`, unless it is there already.

    `keep`: why data that were prepared there from another log or config may not be replaced, empty where they may.
    """
    if config.events is None:
        raise InputError("data.events is missing: name the log, a Parquet file or a folder of them")
    events = find_files(config.events, log)
    items = find_files(config.items, log) if config.items else {}
    fingerprint = fingerprint_of(config, events | items)
    there = exists(join(destination, "manifest.json"))
    before = _manifest_at(destination, config.grow)
    if before is not None and before.fingerprint == fingerprint:
        log(f"{destination}: prepared already, nothing to do")
        return before
    if there and (reason := keep()):
        raise InputError(
            f"{destination}: was prepared from another log or data section, or by another release, and {reason}; take "
            "another name for the run, or remove its folder"
        )
    if before is not None and not config.grow:
        log(f"{destination}: was prepared from another log or data section, and is prepared anew")
    if config.grow and not there:
        before = _manifest_at(join(destination, BEFORE), True)
    _refuse_overlap(destination, [*events, *items])
    root = config.work or join(destination, WORK)
    name = work_name(config, destination, fingerprint)
    work = join(root, name)
    if config.work is None:
        for other in list_folders(root):
            if other != name:
                remove(join(root, other))
    _begin(destination, work)
    pipeline = _Pipeline(config, destination, work, runner or InThisProcess(), log)
    try:
        manifest = pipeline.run(list(events), list(items), fingerprint, before)
    except StorageError:
        raise
    except InputError:
        _end(destination, work)
        _remove_empty(root, destination)
        raise
    _end(destination, work)
    _remove_empty(root)
    return manifest


def _begin(destination: str, work: str) -> None:
    """What an earlier run has left in `work` counts as long as no other one was begun at the destination since."""
    begun, ours = join(destination, BEGUN), json.dumps({"work": absolute(work)})
    if not exists(begun) or read_text(begun) != ours:
        remove(work)
        write_text(begun, ours)


def _end(destination: str, work: str) -> None:
    """Remove what is of no use any more; what content had learned that was removed is, until content is there again."""
    remove(work)
    if exists(join(destination, "manifest.json")):
        remove(join(destination, BEFORE))
    remove(join(destination, BEGUN))


class _Pipeline:
    """The stages of one run, in their order; what a stage finds is what its tasks give, as JSON."""

    def __init__(self, config: DataConfig, destination: str, work: str, runner: Runner, log: Log) -> None:
        self.job = Job(config, work, destination)
        self.config, self.runner, self.log = config, runner, log

    def run(self, event_files: list[str], item_files: list[str], fingerprint: str, before: Manifest | None) -> Manifest:
        config = self.config
        spilled = self._partition(self._survey(event_files, before))
        histories = self._histories([name for piece in spilled for name in piece["files"]])
        self.log("building vocabularies from the training events")
        (known,) = self._stage("known", fit_items, [self._counts([ITEM], "items")[ITEM]], "item vocabulary")
        self._change(items=known["size"])
        counts = count(config, spilled, histories, known)
        refuse_empty_split(self.job, counts, min(piece["first_time"] for piece in spilled if piece["events"]))
        if not counts["items"]:
            raise InputError(f"no item has {config.min_item_count} training events (data.min_item_count)")
        found = self._fit([feature.name for feature in event_features(config)], "features")
        if item_files:
            self.log(f"reading {len(item_files)} files of items from {config.items}")
        (items,) = self._stage("items", build_items, [item_files], "item table")
        counts["unknown_item_events"] = items["unknown_item_events"]
        counts["other_items"] = items["size"] - known["size"]
        found |= items["features"] | self._fit_ages()
        features = {feature.name: PreparedFeature.model_validate(found[feature.name]) for feature in config.features}
        refuse_intents_without_label(features)
        mean_duration = self._mean_duration(histories)
        shards, labels = self._encode(features, items["ranges"], counts)
        warnings = warnings_of(config, counts, labels["different"])
        for warning in warnings:
            self.log(f"warning: {warning}")
        manifest = Manifest(
            items=known["size"],
            catalogue=items["size"],
            features=list(features.values()),
            time_unit="position" if config.time_unit == "position" else "time",
            first_time=min(part["first_time"] for part in histories if part["first_time"] is not None),
            last_time=max(part["last_time"] for part in histories if part["last_time"] is not None),
            newest_time=self.job.last_time,
            has_duration=config.duration is not None,
            mean_duration=mean_duration,
            split=config.split.model_dump(),
            begins=begins_of(config.split, self.job.last_time),
            counts=counts,
            warnings=warnings,
            majority=labels["majority"],
            fingerprint=fingerprint,
            shards=shards,
        )
        save_manifest(manifest, self.job.destination)
        self.log(f"{self.job.destination}: {summary(counts, config)}")
        return manifest

    def _stage(self, name: str, function: Task, tasks: Sequence[Any], description: str) -> Results:
        return run_stage(self.runner, self.job.work, name, function, (self.job,), tasks, description)

    def _change(self, **changes: Any) -> None:
        self.job = self.job.with_changes(**changes)

    def _survey(self, urls: list[str], before: Manifest | None) -> Any:
        """The log's pieces; and the plan of this run, which goes on as it was begun."""
        self.log(f"reading {len(urls)} files of events from {self.config.events}")
        groups = [urls[begin : begin + FILES_A_TASK] for begin in range(0, len(urls), FILES_A_TASK)]
        arguments = (self.config,)
        found = run_stage(self.runner, self.job.work, "survey", survey_files, arguments, groups, "files")
        files = [file for group in found for file in group["files"]]
        if [file["url"] for file in files] != urls:
            raise InputError(f"{self.job.work}: was begun with other files than the log has, and is removed")
        events = sum(sum(file["rows"]) for file in files)
        if not events:
            raise InputError(f"{self.config.events}: the log has no events")
        plan = join(self.job.work, "plan.json")
        if not exists(plan):
            write_text(plan, json.dumps({"base": keep_base(self.job, before) if before and self.config.grow else None}))
        self._change(
            partitions=-(-events // self.config.partition_events),
            types=log_types(self.config, files),
            base=json.loads(read_text(plan))["base"],
        )
        if self.job.partitions < FEWEST_PARTITIONS:
            self.runner = InThisProcess()
        return pieces_of(files, self.config.partition_events)

    def _partition(self, pieces: list[Any]) -> Results:
        self.log(f"sorting by user and time: {len(pieces)} pieces of the log, {self.job.partitions} partitions")
        spilled = self._stage("partition", partition_piece, list(enumerate(pieces)), "pieces partitioned")
        if self.config.until is not None and not any(piece["events"] for piece in spilled):
            raise InputError(f"{self.config.events}: no event is before data.until {self.config.until.isoformat()}")
        self._change(last_time=max(piece["last_time"] for piece in spilled if piece["events"]))
        return spilled

    def _histories(self, files: list[str]) -> Results:
        self.log(f"splitting every user's history: {self.config.split.kind}")
        tasks = [(number, files) for number in range(self.job.partitions)]
        found = self._stage("histories", build_histories, tasks, "partitions sorted")
        if not sum(part["users"] for part in found):
            least = self.config.min_user_events
            raise InputError(f"{self.config.events}: no user has {least} events (data.min_user_events)")
        return found

    def _fit(self, names: list[str], stage: str) -> dict[str, Any]:
        """The features `names`, which are counted where they learn, as the manifest has them."""
        files = self._counts([f.name for f in self.config.features if f.name in names and kind_of(f).learns(f)], stage)
        tasks = [(name, files.get(name, [])) for name in names]
        fitted = self._stage(f"fit/{stage}", fit_feature, tasks, "features fitted")
        return dict(zip(names, fitted, strict=True))

    def _counts(self, names: list[str], stage: str) -> dict[str, list[str]]:
        """The files of the counts of each of `names`; of many partitions, those of 32 are put together."""
        files = {name: [counts_of(name, number) for number in range(self.job.partitions)] for name in names}
        if self.job.partitions <= PARTITIONS_A_TASK:
            return files
        tasks = [
            (name, files[name][begin : begin + PARTITIONS_A_TASK], f"merged/{name}-{begin:06d}.parquet")
            for name in names
            for begin in range(0, self.job.partitions, PARTITIONS_A_TASK)
        ]
        self._stage(f"merge/{stage}", merge_counts, tasks, "counts merged")
        return {name: [target for found, _, target in tasks if found == name] for name in names}

    def _fit_ages(self) -> dict[str, Any]:
        """The item features that depend on the time of events: counted over these where there is something to learn."""
        ages = [feature for feature in self.config.features if feature.of == "item" and kind_of(feature).of_time]
        learning = [feature.name for feature in ages if kind_of(feature).learns(feature)]
        if learning:
            tasks = [(number, learning) for number in range(self.job.partitions)]
            self._stage("ages", count_ages, tasks, "ages counted")
        return self._fit([feature.name for feature in ages], "ages")

    def _mean_duration(self, histories: Results) -> float:
        if self.config.duration is None:
            return 1.0
        moments = functools.reduce(Moments.merged, (Moments(**part["duration"]) for part in histories))
        if moments.mean == 0:
            raise InputError(f"{self.config.events}: column {self.config.duration!r} is 0 in every training event")
        return moments.mean

    def _encode(
        self, features: dict[str, PreparedFeature], ranges: list[int], counts: Counts
    ) -> tuple[dict[SplitName, list[Shard]], dict[str, Any]]:
        """Write shards, vocabularies, items and pairs; gives the shards, and what is known of the labels."""
        job = self.job
        self._clear()
        for name in SPLITS:
            self.log(f"writing {name}: {counts[f'{name}_rows']:,} users, {counts[f'{name}_targets']:,} targets")
        described = {name: feature.model_dump() for name, feature in features.items()}
        tasks = [(number, described, ranges) for number in range(job.partitions)]
        encoded = self._stage("encode", encode_partition, tasks, "partitions written")
        for name in SPLITS:
            counts[f"unknown_targets_{name}"] = sum(part["unknown_targets"][name] for part in encoded)
        for pairs in pairs_of(self.config):
            ranged = [(pairs, number) for number in range(job.partitions)]
            self._stage(f"merge/{pairs}", merge_pairs, ranged, f"{pairs} counted")
        counted = {name: described[name] for name, feature in features.items() if is_counted(feature)}
        (labels,) = self._stage("merge/labels", sum_labels, [counted], "labels counted")
        self.log(f"writing vocabularies: {counts['items']:,} items that training knows")
        indexed = [name for name, feature in features.items() if not feature.is_number]
        names = [(name, labels["bins"].get(name)) for name in (ITEM, *indexed)]
        self._stage("publish", publish_vocabulary, names, "vocabularies written")
        copy(join(job.work, ITEMS), join(job.destination, ITEMS))
        splits: tuple[SplitName, ...] = (*SPLITS, "rest")
        shards = {
            name: [Shard.model_validate(shard) for part in encoded for shard in part["shards"][name]] for name in splits
        }
        return shards, labels

    def _clear(self) -> None:
        """Remove what an earlier run left at the destination, once: from here on shards of this one are there."""
        cleared = join(self.job.work, "cleared.json")
        if not exists(cleared):
            for name in CONTENT if self.job.base is not None else (*CONTENT, BEFORE):
                remove(join(self.job.destination, name))
            write_text(cleared, "{}")


def fingerprint_of(config: DataConfig, files: dict[str, str]) -> str:
    """Of the config's data section and the input files' names, sizes and times of change (or ETags)."""
    described = config.model_dump(mode="json", exclude={"work", "grow"})
    content = json.dumps([ALGORITHM, described, list(files.items())], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def work_name(config: DataConfig, destination: str, fingerprint: str) -> str:
    """What is left to go on with is of this input and this destination, and it grows or does not."""
    content = json.dumps([fingerprint, absolute(destination), config.grow])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _manifest_at(folder: str, needed: bool) -> Manifest | None:
    """None where there is none, or none that can be read; that is refused where it is `needed`."""
    if not exists(join(folder, "manifest.json")):
        return None
    try:
        return load_manifest(folder)
    except InputError as error:  # of another version, or damaged
        if needed:
            raise InputError(f"{error}; data.grow keeps what it says: leave that out, or take another folder") from None
        return None


def _remove_empty(*folders: str) -> None:
    """Remove those of the local `folders` that have nothing in them."""
    for url in folders:
        filesystem, path = open_filesystem(url)
        if "file" in filesystem.protocol and filesystem.isdir(path) and not filesystem.ls(path):
            filesystem.rmdir(path)


def _refuse_overlap(destination: str, files: list[str]) -> None:
    """The input must not lie where older prepared content is removed."""
    ours = [open_filesystem(join(destination, name))[1] for name in CONTENT]
    for url in files:
        _, path = open_filesystem(url)
        if any(path == own or path.startswith(f"{own}/") for own in ours):
            raise InputError(f"{url}: lies where prepared data are written; prepare into another folder")
