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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl

from ingest.data.manifest import Manifest, PreparedFeature, Shard, SplitName, load_manifest, save_manifest
from ingest.data.schema import FIRST_VALUE, DataConfig, Feature
from ingest.errors import InputError
from ingest.prepare.encode import count_digits, encode_partition, observe, waits_for_ages
from ingest.prepare.fit import (
    PARTITIONS_A_TASK,
    base_bins,
    base_feature,
    base_of,
    build_event_vocabulary,
    merge_counts,
    publish_vocabulary,
    write_vocabulary,
)
from ingest.prepare.histories import ITEM, build_histories, counted_features
from ingest.prepare.item_table import ITEMS, build_items
from ingest.prepare.partition import Job, partition_piece
from ingest.prepare.statistics import Moments, select, unsortable
from ingest.prepare.survey import FILES_A_TASK, log_types, pieces_of, survey_files
from ingest.prepare.tasks import InThisProcess, Runner, Task, run_stage
from ingest.prepare.vocabulary import bin_starts, bins_table, describe, describe_bins, quantile_edges
from ingest.storage import (
    copy,
    described_files,
    exists,
    join,
    list_folders,
    open_filesystem,
    read_text,
    remove,
    write_text,
)

ALGORITHM = 3
"""Part of the fingerprint: raised when the same input gives other prepared data than before."""
CONTENT = ("manifest.json", "items.parquet", "vocab", "train", "validation", "test", "rest")
WORK = "_work"
FEWEST_PARTITIONS = 8
"""A log of fewer partitions is prepared in this process: to start others takes longer."""
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Log = Callable[[str], None]
Results = list[dict[str, Any]]


def prepare(config: DataConfig, destination: str, log: Log = print, runner: Runner | None = None) -> Manifest:
    """Prepare the log of `config` in the folder `destination`, unless it is there already."""
    if config.events is None:
        raise InputError("data.events is missing: name the log, a Parquet file or a folder of them")
    events = described_files(config.events, ".parquet")
    items = described_files(config.items, ".parquet") if config.items else {}
    mark = fingerprint(config, events | items)
    before = _manifest_at(destination)
    if before is not None and before.fingerprint == mark:
        log(f"{destination}: prepared already, nothing to do")
        return before
    _refuse_overlap(destination, [*events, *items])
    root = config.work or join(destination, WORK)
    work = join(root, mark[:16])
    if config.work is None:
        for name in list_folders(root):
            if name != mark[:16]:
                remove(join(root, name))
    run = _Preparation(config, destination, work, runner or InThisProcess(), log)
    try:
        manifest = run.run(list(events), list(items), mark, before)
    except InputError:
        remove(work)
        _remove_empty(root, destination)
        raise
    remove(work)
    _remove_empty(root)
    return manifest


class _Preparation:
    def __init__(self, config: DataConfig, destination: str, work: str, runner: Runner, log: Log) -> None:
        self.job = Job(config, work, destination)
        self.config, self.runner, self.log = config, runner, log
        self.counts: dict[str, int] = {}

    def run(self, event_files: list[str], item_files: list[str], mark: str, before: Manifest | None) -> Manifest:
        config = self.config
        pieces = self._survey(event_files, before)
        spilled = self._partition(pieces)
        histories = self._histories([name for piece in spilled for name in piece["files"]])
        vocabularies = self._vocabularies()
        self._count(histories, vocabularies)
        self._refuse_empty(histories)
        features, mean_duration = self._features(histories, vocabularies, item_files)
        shards = self._encode(features, vocabularies)
        first = [part["first_time"] for part in histories if part["first_time"] is not None]
        last = [part["last_time"] for part in histories if part["last_time"] is not None]
        manifest = Manifest(
            items=vocabularies[ITEM]["size"],
            features=[features[feature.name] for feature in config.features],
            time_unit="position" if config.time_unit == "position" else "time",
            first_time=min(first),
            last_time=max(last),
            has_duration=config.duration is not None,
            mean_duration=mean_duration,
            split=config.split.model_dump(),
            counts=self.counts,
            fingerprint=mark,
            shards=shards,
        )
        save_manifest(manifest, self.job.destination)
        self.log(f"{self.job.destination}: {summary(self.counts)}")
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
        events = sum(sum(file["rows"]) for file in files)
        if not events:
            raise InputError(f"{self.config.events}: the log has no events")
        plan = join(self.job.work, "plan.json")
        if not exists(plan):
            base = self._keep_base(before) if self.config.grow else None
            write_text(plan, json.dumps({"base": base}))
        self._change(
            partitions=-(-events // self.config.partition_events),
            types=log_types(self.config, files),
            base=json.loads(read_text(plan))["base"],
        )
        if self.job.partitions < FEWEST_PARTITIONS:
            self.runner = InThisProcess()
        return pieces_of(files, self.config.partition_events)

    def _keep_base(self, before: Manifest | None) -> dict[str, Any] | None:
        """What the data set that grows has learned so far, kept where it is not removed; None where there is none."""
        if before is None:
            return None
        declared = [(feature.name, feature.kind, feature.of, feature.is_number) for feature in self.config.features]
        found = [(feature.name, feature.kind, feature.of, feature.is_number) for feature in before.features]
        if declared != found:
            raise InputError(
                f"{self.job.destination}: has the features {', '.join(f.name for f in before.features) or 'none'}, the "
                "config has others or of another kind: a data set grows (data.grow) with the same ones"
            )
        for name in [ITEM, *(feature.name for feature in before.features if not feature.is_number)]:
            copy(join(self.job.destination, "vocab", f"{name}.parquet"), base_of(self.job, name))
        return {feature.name: feature.model_dump() for feature in before.features}

    def _partition(self, pieces: list[Any]) -> Results:
        self.log(f"sorting by user and time: {len(pieces)} pieces of the log, {self.job.partitions} partitions")
        spilled = self._stage("partition", partition_piece, list(enumerate(pieces)), "pieces partitioned")
        if self.config.until is not None:
            self.counts["events_left_out_by_until"] = sum(piece["left_out"] for piece in spilled)
            if not any(piece["events"] for piece in spilled):
                until = self.config.until.isoformat()
                raise InputError(f"{self.config.events}: no event is before data.until {until}")
        self.first_time = min(piece["first_time"] for piece in spilled if piece["events"])
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

    def _vocabularies(self) -> dict[str, dict[str, Any]]:
        self.log("building vocabularies from the training events")
        least = {ITEM: self.config.min_item_count} | {f.name: f.min_count for f in counted_features(self.job)}
        numbers = range(self.job.partitions)
        groups = [list(numbers[b : b + PARTITIONS_A_TASK]) for b in range(0, len(numbers), PARTITIONS_A_TASK)]
        merges = [(name, group, f"merged/{name}-{i:05d}.parquet") for name in least for i, group in enumerate(groups)]
        merged = self._stage("merge", merge_counts, merges, "counts merged")
        files = {name: [f["file"] for f, task in zip(merged, merges, strict=True) if task[0] == name] for name in least}
        tasks = [(name, files[name], count) for name, count in least.items()]
        built = self._stage("vocabularies", build_event_vocabulary, tasks, "vocabularies built")
        return dict(zip(least, built, strict=True))

    def _count(self, histories: Results, vocabularies: dict[str, dict[str, Any]]) -> None:
        def total(key: str, name: str | None = None) -> int:
            return sum(part[key] if name is None else part[key][name] for part in histories)

        counts, item = self.counts, vocabularies[ITEM]
        for key in ("duplicates", "dropped_users", "dropped_events", "users", "events", "training_events"):
            counts[key] = total(key)
        counts["items"] = item["size"] - FIRST_VALUE
        counts["items_below_min_count"] = max(item["different"] - counts["items"], 0)
        counts["unknown_training_events"] = item["unknown"]
        for name in SPLITS:
            counts[f"{name}_rows"] = total("rows", name)
            counts[f"{name}_targets"] = total("targets", name)
            counts[f"{name}_users_without_target"] = total("without_target", name)
        counts["rest_rows"] = total("rows", "rest")
        counts["users_without_target"] = total("users_without_target")

    def _refuse_empty(self, histories: Results) -> None:
        empty = next((name for name in SPLITS if not self.counts[f"{name}_rows"]), None)
        if empty is None:
            return
        split = self.config.split
        if split.kind == "leave_one_out":
            reason = "no user has 2, or more than 3, events" if empty == "train" else "no user has 3 events or more"
            raise InputError(f"the {empty} split is empty: {reason}")
        files = [f"histories/{number:06d}.arrow" for number in range(self.job.partitions)]
        (late,) = self._select("time", files, lambda number: [int(0.999 * (number - 1))], is_float=False)
        raise InputError(
            f"the {empty} split is empty: no user has events to predict there; the spans are validation "
            f"{split.validation} and test {split.test}, the log goes from {_date(self.first_time)} to "
            f"{_date(self.job.last_time)}, 99.9 % of it until {_date(int(late))}"
        )

    def _features(
        self, histories: Results, vocabularies: dict[str, dict[str, Any]], item_files: list[str]
    ) -> tuple[dict[str, PreparedFeature], float]:
        """Every feature as the manifest has it, and the mean duration."""
        if item_files:
            self.log(f"reading {len(item_files)} files of items from {self.config.items}")
        (items,) = self._stage("items", build_items, [item_files], "item table")
        self.counts["unknown_item_events"] = items["unknown_item_events"]
        features: dict[str, PreparedFeature] = {}
        edges = self._quantiles()
        for feature in self.config.features:
            of_item = items["features"].get(feature.name) if feature.of == "item" else None
            if of_item is not None:
                features[feature.name] = PreparedFeature.model_validate(of_item)
            elif waits_for_ages(feature):
                features[feature.name] = self._bins(feature, edges)[0]
            elif feature.is_number:
                moments = _moments(histories, feature.name)
                standard = describe(feature, 0, mean=moments.mean, deviation=moments.deviation or 1.0)
                features[feature.name] = base_feature(self.job, feature) or standard
            else:
                features[feature.name] = describe(feature, vocabularies[feature.name]["size"])
        mean_duration = 1.0
        if self.config.duration is not None:
            mean_duration = _moments(histories, "duration").mean
            if mean_duration == 0:
                raise InputError(f"{self.config.events}: column {self.config.duration!r} is 0 in every training event")
        return features, mean_duration

    def _bins(self, feature: Feature, edges: dict[str, list[float]]) -> tuple[PreparedFeature, list[str]]:
        before = base_bins(self.job, feature)
        return before or describe_bins(feature, edges.get(feature.name, feature.edges()))

    def _quantiles(self) -> dict[str, list[float]]:
        """The edges of bins that are to hold equal parts of the training events."""
        wanted = [f for f in self.config.features if waits_for_ages(f) and isinstance(f.bins, int)]
        if not wanted or self.job.base is not None:
            return {}
        names = [feature.name for feature in wanted]
        numbers = range(self.job.partitions)
        observed = self._stage("observed", observe, [(number, names) for number in numbers], "values observed")
        files = [f"observed/{number:06d}.arrow" for number in numbers]
        edges = {}
        for feature in wanted:
            known = [part["smallest"][feature.name] for part in observed]
            known = [value for value in known if value is not None]
            bins = feature.bins
            assert isinstance(bins, int)
            places = functools.partial(bin_starts, bins)
            starts = self._select(feature.name, files, places, feature.kind == "number")
            edges[feature.name] = quantile_edges(starts, min(known)) if known else []
        return edges

    def _select(self, column: str, files: list[str], places: Callable[[int], list[int]], is_float: bool) -> list[float]:
        def count(prefixes: Sequence[int], done: int) -> Iterable[dict[str, list[int]]]:
            tasks = [(file, column, list(prefixes), done) for file in files]
            return self._stage(f"select/{column}/{done}", count_digits, tasks, "values counted")

        return [unsortable(key, is_float) for key in select(count, places)]

    def _encode(
        self, features: dict[str, PreparedFeature], vocabularies: dict[str, dict[str, Any]]
    ) -> dict[SplitName, list[Shard]]:
        job, counts = self.job, self.counts
        self._clear()
        for name in SPLITS:
            self.log(f"writing {name}: {counts[f'{name}_rows']:,} users, {counts[f'{name}_targets']:,} targets")
        described = {name: feature.model_dump() for name, feature in features.items()}
        tasks = [(number, described) for number in range(job.partitions)]
        encoded = self._stage("encode", encode_partition, tasks, "partitions written")
        for name in SPLITS:
            counts[f"unknown_targets_{name}"] = sum(part["unknown_targets"][name] for part in encoded)
        self.log(f"writing vocabularies: {counts['items']:,} items")
        for feature in self.config.features:
            if waits_for_ages(feature):
                bins = [part["bins"][feature.name] for part in encoded]
                _, labels = self._bins(feature, {feature.name: features[feature.name].edges})
                write_vocabulary(
                    job, feature.name, bins_table(labels, [sum(column) for column in zip(*bins, strict=True)])
                )
        names = [ITEM, *(feature.name for feature in self.config.features if not features[feature.name].is_number)]
        self._stage("publish", publish_vocabulary, names, "vocabularies written")
        copy(join(job.work, ITEMS), join(job.destination, ITEMS))
        return {
            name: [Shard.model_validate(shard) for part in encoded for shard in part["shards"][name]]
            for name in (*SPLITS, "rest")
        }

    def _clear(self) -> None:
        """Remove what an earlier run left at the destination, once: from here on shards of this one are there."""
        cleared = join(self.job.work, "cleared.json")
        if not exists(cleared):
            for name in CONTENT:
                remove(join(self.job.destination, name))
            write_text(cleared, "{}")


def _moments(histories: Results, name: str) -> Moments:
    return functools.reduce(Moments.merged, (Moments(**part["moments"][name]) for part in histories))


def _date(milliseconds: int) -> str:
    return str(pl.Series([milliseconds]).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%dT%H:%M")[0])


def summary(counts: dict[str, int]) -> str:
    """The counts as a sentence: the main ones, and of all that was dropped or is unknown what is not 0."""
    main = ("users", "events", "items")
    others = [name for name, count in counts.items() if count and name not in main and not name.endswith("_rows")]
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in (*main, *others))


def fingerprint(config: DataConfig, files: dict[str, str]) -> str:
    """Of the config's data section and the input files' names, sizes and times of change (or ETags)."""
    described = config.model_dump(mode="json", exclude={"work", "grow"})
    content = json.dumps([ALGORITHM, described, list(files.items())], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _manifest_at(destination: str) -> Manifest | None:
    if not exists(join(destination, "manifest.json")):
        return None
    try:
        return load_manifest(destination)
    except InputError:  # of another version, or damaged
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
