"""The stages of a run, each of which leaves what is done already alone: log, data, models, evaluation, users."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from cluster import fingerprints, summary
from cluster.config import Config
from cluster.launch import run_here, run_on_workers
from cluster.results import REPORT, RESULTS, results_of
from cluster.runner import OnRay
from evaluation.results import Evaluated, Recommended, Results
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.requests import read_requests
from ingest.errors import InputError
from ingest.patience import at_most
from ingest.prepare.pipeline import prepare
from ingest.raw.files import find_files
from ingest.sources.registry import Source
from ingest.storage import exists, join, read_text, remove, write_text
from trainer.progress import Markers, Progress, identity
from trainer.versions import check_installed_versions

WORK = "cluster.work:run_stages"
MARKER = "complete.json"
SAME_LOG = {"processes"}
"""Keys of a source that change nothing of what it makes."""
FILES = "made of"
"""Where a log's marker keeps the files that it is made of, each with its size and time of change."""


class Stages:
    """The stages of the run that `config` describes; `ray` is False for a run in this process."""

    def __init__(self, config: Config, ray: bool = True) -> None:
        self.config, self.ray = config, ray
        self.seconds: dict[str, float] = {}

    def make_log(self) -> None:
        """Simulate or import, as the config says."""
        source, folder = self.config.source, self.config.log_folder
        if source is None:
            return
        marker, made = join(folder, "made.json"), source.model_dump(mode="json", exclude=SAME_LOG)
        before = {key: value for key, value in _read(marker).items() if key not in SAME_LOG}
        files_before, files = before.pop(FILES, None), _files_of(source)
        changed = files_before is not None and files is not None and files != files_before
        if before == made and not changed and exists(join(folder, source.events_path)):
            print(f"log: {folder} is there already")
            return
        began = time.perf_counter()
        remove(marker)
        counts = source.make(folder)
        write_text(marker, json.dumps(made | {FILES: files}, sort_keys=True))
        self.seconds["log"] = time.perf_counter() - began
        numbers = ", ".join(f"{value:,} {name}" for name, value in counts.items() if isinstance(value, int))
        print(f"log: {folder}: {numbers}")

    def prepare(self) -> None:
        """Events and items to the prepared data set."""
        with ExitStack() as joined:
            self._prepare(joined)

    def train(self) -> None:
        """Train every neural model of the config that is not trained to its end yet."""
        self._work("train")

    def recommend(self) -> None:
        """The best items and the predicted intents of every user, as Parquet."""
        self._work("recommend")

    def evaluate(self) -> None:
        """Evaluate all models on the test split; writes results.json and the report."""
        self._work("evaluate")

    def run(self) -> None:
        """All stages, those that need workers in one group of them."""
        if self.config.recommend is not None and self.config.recommend.requests is not None:
            find_files(self.config.recommend.requests, lambda _: None)  # refused now, and not when all is trained
        self.make_log()
        with ExitStack() as joined:  # a cluster that prepare has joined serves the other stages, too
            self._prepare(joined)
            self._work("train", *(["recommend"] if self.config.recommend is not None else []), "evaluate")

    def tune(self) -> None:
        """Prepare, and look for better settings of the models than those of the config."""
        from cluster.tune import tune
        from cluster.tune_space import check_space

        check_space(self.config)
        self.make_log()
        with ExitStack() as joined:
            self._prepare(joined)
            check_installed_versions()
            tune(self.config)

    def _prepare(self, joined: ExitStack) -> None:
        """`joined`: by whose end a cluster is left that is joined for it."""
        config, began = self.config, time.perf_counter()
        with OnRay(config.cluster, joined, config.storage) if self.ray else nullcontext() as runner:
            prepare(config.prepared_input(), config.data_folder, runner=runner, keep=self._trained_on_the_data)
        self.seconds["prepare"] = time.perf_counter() - began

    def _trained_on_the_data(self) -> str:
        """Why the prepared data may not be replaced, where they may not."""
        config = self.config
        trained = [name for name in config.neural if Markers(config.checkpoints(name)).latest() is not None]
        return f"models were trained on them: {', '.join(trained)}" if trained and not config.data.grow else ""

    def _work(self, *verbs: str) -> None:
        """Those of `verbs` that are not done yet, in the workers; then what there is to say and to write."""
        check_installed_versions()
        untrained = self._untrained() if "train" in verbs else []
        stages: dict[str, Any] = {"train": untrained} if untrained else {}
        for verb in verbs:
            if verb != "train" and (stages or not self._is_done(verb)):
                stages[verb] = None
        self._require_checkpoints(stages)
        if "recommend" in stages:
            self._require_requests()
            remove(self.config.recommendations_folder)
        found = self._in_workers(stages) if stages else {}
        self.seconds |= found.pop("seconds", {})
        if "train" in verbs:
            self._end_training(untrained)
        if "recommend" in verbs:
            self._end_recommending(found.get("recommend"))
        if "evaluate" in verbs:
            self._end_evaluating(found.get("evaluate"))

    def _in_workers(self, stages: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        arguments = {"config": config.model_dump(mode="json", by_alias=True), "stages": stages}
        if not self.ray:
            return run_here(WORK, arguments, config.cluster)
        return run_on_workers(WORK, arguments, config.cluster, config.storage, config.name)

    def _untrained(self) -> list[str]:
        """The neural models that are not trained to their end. Refuses those that were trained otherwise."""
        manifest = load_manifest(self.config.data_folder)
        if self.config.neural and not manifest.shards["train"]:
            raise InputError(f"{self.config.data_folder}: no user of the training data has two events to learn from")
        return [name for name in self.config.neural if not self._resume_point(name, manifest)[1].finished]

    def _resume_point(self, name: str, manifest: Manifest) -> tuple[str | None, Progress]:
        ours = self._identity(name, manifest)
        return Markers(self.config.checkpoints(name)).resume_point(ours, self.config.train_config(name))

    def _identity(self, name: str, manifest: Manifest) -> dict[str, Any]:
        return identity(self.config.neural[name], self.config.train_config(name), manifest.fingerprint)

    def _require_checkpoints(self, stages: dict[str, Any]) -> None:
        """Refuse to evaluate or recommend by a model that has no checkpoint and gets none by now."""
        if "train" in stages:
            return
        needed = list(self.config.neural) if "evaluate" in stages else []
        for name in [*needed, *([self._recommended] if "recommend" in stages else [])]:
            Markers(self.config.checkpoints(name)).require_best(name)

    def _require_requests(self) -> None:
        """Refuse requests that can not be read before the models are trained that are to answer them."""
        config, settings = self.config, self.config.recommend
        if settings is not None and settings.requests is not None:
            read_requests(settings.requests, config.data, load_manifest(config.data_folder), config.data_folder)

    @property
    def _recommended(self) -> str:
        if self.config.recommended is None:
            raise InputError("recommend: no model of the config is trained, so there is none to recommend")
        return self.config.recommended

    def _is_done(self, verb: str) -> bool:
        """Whether what `verb` makes is there, and was made from the config, data and checkpoints that there are."""
        config = self.config
        if verb == "evaluate":
            ours = fingerprints.of_evaluation(config)
            done = _read(join(config.folder, RESULTS)).get("data", {}), _read(join(config.targets_folder, MARKER))
            return all(found.get("fingerprint") == ours for found in done) and exists(join(config.folder, REPORT))
        ours = fingerprints.of_recommendations(config, self._recommended)
        return _read(join(config.recommendations_folder, MARKER)).get("fingerprint") == ours

    def _end_training(self, trained: list[str]) -> None:
        manifest = load_manifest(self.config.data_folder)
        for name in self.config.neural:
            latest, progress = self._resume_point(name, manifest)
            ignored: list[str] = []
            if name not in trained and latest is not None:
                markers = Markers(self.config.checkpoints(name))
                ignored = summary.without_effect(markers, latest, self._identity(name, manifest))
            summary.print_training(self.config, name, progress, ignored)

    def _end_recommending(self, found: dict[str, Any] | None) -> None:
        marker = join(self.config.recommendations_folder, MARKER)
        if found is not None:
            ours = fingerprints.of_recommendations(self.config, self._recommended)
            write_text(marker, json.dumps({"fingerprint": ours, **found}))
        made = {key: value for key, value in json.loads(read_text(marker)).items() if key != "fingerprint"}
        summary.print_recommendations(self.config, Recommended.model_validate(made))

    def _end_evaluating(self, found: dict[str, Any] | None) -> None:
        config = self.config
        if found is None:
            results = Results.model_validate_json(read_text(join(config.folder, RESULTS)))
        else:
            ours = fingerprints.of_evaluation(config)
            results = results_of(config, Evaluated.model_validate(found), ours, self.seconds)
            write_text(join(config.targets_folder, MARKER), json.dumps({"fingerprint": ours}))
        summary.print_results(config, results)


def _files_of(source: Source) -> dict[str, str] | None:
    """What a log is to be made of, asked for once; None where that is not there, as when it was put away after the
    import."""
    with at_most(0), suppress(InputError):
        return source.files()
    return None


def _read(path: str) -> dict[str, Any]:
    """A file that says what was made; nothing where it is not there or not whole."""
    try:
        found = json.loads(read_text(path)) if exists(path) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
