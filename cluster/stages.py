"""The stages of a run, each of which leaves what is done already alone: log, data, models, evaluation, users."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cluster.config import Config
from cluster.launch import run_here, run_on_workers
from cluster.runner import OnRay
from evaluation.results import Evaluated, Results
from ingest.data.manifest import Manifest, load_manifest
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from ingest.prepare.pipeline import prepare
from ingest.prepare.tasks import InThisProcess, Runner
from ingest.sources.simulate import simulate
from ingest.storage import exists, join, read_text, remove, write_text
from trainer.models.registry import NeuralConfig
from trainer.progress import Markers, Progress, identity
from trainer.versions import check_installed_versions, installed

WORK = "cluster.work:run_stages"
SHOWN_WARNINGS = 5
RESULTS, REPORT, MARKER = "results.json", "report/index.html", "complete.json"


class Stages:
    """The stages of the run that `config` describes; `ray` is False for a run in this process."""

    def __init__(self, config: Config, ray: bool = True) -> None:
        self.config, self.ray = config, ray
        self.seconds: dict[str, float] = {}

    def make_log(self) -> None:
        """Simulate or import, as the config says."""
        config = self.config
        section = config.simulate or config.import_
        if section is None:
            return
        marker = join(config.log_folder, "made.json")
        made = json.dumps(section.model_dump(mode="json"), sort_keys=True)
        if exists(marker) and read_text(marker) == made:
            print(f"log: {config.log_folder} is there already")
            return
        began = time.perf_counter()
        if config.simulate is not None:
            counts = simulate(config.simulate, config.log_folder)
        else:
            from ingest.sources.movielens import import_movielens

            assert config.import_ is not None
            counts = import_movielens(config.import_.source, config.log_folder, config.import_.interactions)
        write_text(marker, made)
        self.seconds["log"] = time.perf_counter() - began
        numbers = ", ".join(f"{value:,} {name}" for name, value in counts.items() if isinstance(value, int))
        print(f"log: {config.log_folder}: {numbers}")

    def prepare(self) -> None:
        """Events and items to the prepared data set."""
        with self._runner() as runner:
            self._prepare(runner)

    def _runner(self) -> AbstractContextManager[Runner]:
        return OnRay(self.config.cluster, self.config.storage) if self.ray else nullcontext(InThisProcess())

    def _prepare(self, runner: Runner) -> None:
        began = time.perf_counter()
        prepare(self.config.prepared_input(), self.config.data_folder, runner=runner)
        self.seconds["prepare"] = time.perf_counter() - began

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
        self.make_log()
        with self._runner() as runner:  # a cluster that prepare has joined serves the other stages, too
            self._prepare(runner)
            self._work("train", *(["recommend"] if self.config.recommend is not None else []), "evaluate")

    def _work(self, *verbs: str) -> None:
        """Those of `verbs` that are not done yet, in the workers; then what there is to say and to write."""
        check_installed_versions()
        untrained = self._untrained()
        stages: dict[str, Any] = {"train": untrained} if "train" in verbs and untrained else {}
        for verb in verbs:
            if verb != "train" and (stages or not self._is_done(verb)):
                stages[verb] = None
        self._require_checkpoints(stages)
        if "recommend" in stages:
            remove(self.config.recommendations_folder)
        found = self._in_workers(stages) if stages else {}
        self.seconds |= found.pop("seconds", {})
        if "train" in verbs:
            self._show_training()
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
        return [name for name in self.config.neural if not self._standing(name, manifest).finished]

    def _require_checkpoints(self, stages: dict[str, Any]) -> None:
        """Refuse to evaluate or recommend by a model that has no checkpoint and gets none by now."""
        if "train" in stages:
            return
        needed = self.config.neural if "evaluate" in stages else [self._recommended] if "recommend" in stages else []
        for name in needed:
            Markers(self.config.checkpoints(name)).require_best(name)

    @property
    def _recommended(self) -> str:
        if self.config.recommended is None:
            raise InputError("recommend: no model of the config is trained, so there is none to recommend")
        return self.config.recommended

    def _standing(self, name: str, manifest: Manifest) -> Progress:
        model, train = self.config.models[name], self.config.train_config(name)
        assert isinstance(model, NeuralConfig)
        markers = Markers(self.config.checkpoints(name))
        return markers.standing(identity(model, train, manifest.fingerprint), train)[1]

    def _show_training(self) -> None:
        manifest = load_manifest(self.config.data_folder)
        for name in self.config.neural:
            best, metric = self._standing(name, manifest).best, self.config.train_config(name).metric
            print(f"model {name}: best validation {metric} {best:.4f}, in {self.config.model_folder(name)}")

    def _is_done(self, verb: str) -> bool:
        """Whether what `verb` makes is there, and was made from the config, data and checkpoints that there are."""
        config = self.config
        if verb == "evaluate":
            path = join(config.folder, RESULTS)
            done = json.loads(read_text(path)).get("data", {}) if exists(path) else {}
            return done.get("mark") == self._evaluation_mark() and exists(join(config.folder, REPORT))
        marker = join(config.recommendations_folder, MARKER)
        return exists(marker) and json.loads(read_text(marker))["mark"] == self._recommendation_mark()

    def _end_recommending(self, made: dict[str, Any] | None) -> None:
        folder = self.config.recommendations_folder
        marker = join(folder, MARKER)
        if made is None:
            made = json.loads(read_text(marker))
        else:
            write_text(marker, json.dumps({"mark": self._recommendation_mark(), **made}))
        print(f"recommendations of model {made['model']} for {made['users']:,} users: {folder}")

    def _end_evaluating(self, found: dict[str, Any] | None) -> None:
        if found is None:
            results = Results.model_validate_json(read_text(join(self.config.folder, RESULTS)))
        else:
            results = self._results(Evaluated.model_validate(found), self._evaluation_mark())
        self._show(results)

    def _evaluation_mark(self) -> str:
        return self._mark(list(self.config.models))

    def _recommendation_mark(self) -> str:
        section = self.config.recommend.model_dump_json() if self.config.recommend else ""
        return self._mark([self._recommended], section)

    def _mark(self, models: list[str], section: str = "") -> str:
        """Changes with everything that an evaluation of `models` depends on: config, data, best checkpoints."""
        parts = [section, self.config.evaluate.model_dump_json(), load_manifest(self.config.data_folder).fingerprint]
        for name in models:
            markers = Markers(self.config.checkpoints(name)) if name in self.config.neural else None
            parts += [name, self.config.models[name].model_dump_json()]
            parts += [markers.best() or "", *markers.complete()] if markers else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _results(self, found: Evaluated, mark: str) -> Results:
        manifest = load_manifest(self.config.data_folder)
        data: dict[str, Any] = {
            "users": manifest.counts["users"],
            "items": manifest.items - FIRST_VALUE,
            "events": manifest.counts["events"],
            "counts": {name: value for name, value in manifest.counts.items() if value},
            "mark": mark,
            "warnings": found.warnings,
        }
        return Results(
            name=self.config.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            protocol=found.protocol,
            models=found.models,
            command=" ".join(["intentrec", *sys.argv[1:]]),
            machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            versions={name: installed(name) or "" for name in ("torch", "torchrec", "ray", "pyarrow")},
            majority=found.majority,
            example=found.example,
            data=data,
            config=self.config.text(),
            seconds=self.seconds,
        )

    def _show(self, results: Results) -> None:
        from evaluation.report import format_table, write_report

        page = write_report(results, self.config.folder)
        print(f"\n{format_table(results)}\n")
        warnings = results.data.get("warnings", [])
        assert isinstance(warnings, list)
        for warning in warnings[:SHOWN_WARNINGS]:
            print(f"warning      {warning}")
        if len(warnings) > SHOWN_WARNINGS:
            print(f"warning      ... and {len(warnings) - SHOWN_WARNINGS} more, in the report")
        print(f"results      {join(self.config.folder, RESULTS)}")
        print(f"report       {page}")
        print(f"TensorBoard  tensorboard --logdir {join(self.config.folder, 'models')}")
