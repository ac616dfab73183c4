"""The stages of a run, each of which leaves what is done already alone: log, data, models, evaluation, users."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import sys
import time
from contextlib import nullcontext
from typing import Any

from cluster.config import Config
from cluster.launch import Work, ray_cluster, run_here, run_on_workers
from ingest.errors import InputError
from ingest.manifest import load_manifest
from ingest.prepare import prepare
from ingest.schema import FIRST_VALUE
from ingest.simulate import simulate
from ingest.storage import exists, join, list_folders, read_text, remove, write_text
from trainer.versions import check_installed_versions, installed

RESULTS = "results.json"


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
            from ingest.movielens import import_movielens

            assert config.import_ is not None
            counts = import_movielens(config.import_.source, config.log_folder, config.import_.interactions)
        write_text(marker, made)
        self.seconds["log"] = time.perf_counter() - began
        print(f"log: {config.log_folder}: " + ", ".join(f"{key} {_count(value)}" for key, value in counts.items()))

    def prepare(self) -> None:
        """Events and items to the prepared data set."""
        began = time.perf_counter()
        prepare(self.config.prepared_input(), self.config.data_folder)
        self.seconds["prepare"] = time.perf_counter() - began

    def train(self) -> None:
        """Train every neural model of the config that is not trained to its end yet."""
        check_installed_versions()
        manifest = load_manifest(self.config.data_folder)
        if not manifest.shards["train"]:
            raise InputError(f"{self.config.data_folder}: no user of the training data has two events to learn from")
        began = time.perf_counter()
        best = self._run("train_models", {"models": self.config.neural})
        self.seconds["train"] = time.perf_counter() - began
        for name, value in best.items():
            folder = self.config.model_folder(name)
            print(f"model {name}: best validation {self.config.train_config(name).metric} {value:.4f}, in {folder}")

    def evaluate(self) -> dict[str, Any]:
        """Evaluate all models on the test split; writes results.json and the report."""
        check_installed_versions()
        mark = self._mark(list(self.config.models))
        path = join(self.config.folder, RESULTS)
        if exists(path):
            before: dict[str, Any] = json.loads(read_text(path))
            if exists(join(self.config.folder, "report", "index.html")) and before.get("data", {}).get("mark") == mark:
                return self._show(before)
        began = time.perf_counter()
        found = self._run("evaluate_models", {})
        self.seconds["evaluate"] = time.perf_counter() - began
        return self._show(self._results(found, mark))

    def recommend(self) -> None:
        """The best items and the predicted intents of every user, as Parquet."""
        config = self.config
        check_installed_versions()
        if config.recommended is None:
            raise InputError("recommend: no model of the config is trained, so there is none to recommend")
        folder = config.recommendations_folder
        marker = join(folder, "complete.json")
        section = config.recommend.model_dump_json() if config.recommend else ""
        mark = self._mark([config.recommended], section)
        done = json.loads(read_text(marker)) if exists(marker) else {}
        if done.get("mark") == mark:
            print(f"recommendations: {folder} is there already")
            return
        began = time.perf_counter()
        remove(folder)
        made = self._run("recommend_users", {"folder": folder})
        write_text(marker, json.dumps({"mark": mark, **made}))
        self.seconds["recommend"] = time.perf_counter() - began
        print(f"recommendations: {made['users']:,} users by model {made['model']}, in {folder}")

    def run(self) -> None:
        """All stages, those that need workers on one Ray cluster."""
        self.make_log()
        self.prepare()
        with ray_cluster(self.config.cluster) if self.ray else nullcontext():
            self.train()
            if self.config.recommend is not None:
                self.recommend()
            self.evaluate()

    def _run(self, function: str, arguments: dict[str, Any]) -> Any:
        from cluster import work

        config = self.config
        content = {"config": config.model_dump(mode="json", by_alias=True), "text": work.config_text(config)}
        chosen: Work = getattr(work, function)
        if not self.ray:
            return run_here(chosen, content | arguments, config.cluster)
        return run_on_workers(chosen, content | arguments, config.cluster, config.storage, config.name)

    def _mark(self, models: list[str], section: str = "") -> str:
        """Changes with everything that an evaluation of `models` depends on: config, data, best checkpoints."""
        parts = [section, self.config.evaluate.model_dump_json(), load_manifest(self.config.data_folder).fingerprint]
        for name in models:
            folder = self.config.checkpoints(name)
            best = join(folder, "best.json")
            parts += [name, self.config.models[name].model_dump_json(), read_text(best) if exists(best) else ""]
            parts += list_folders(folder)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _results(self, found: dict[str, Any], mark: str) -> dict[str, Any]:
        from cluster.work import config_text

        manifest = load_manifest(self.config.data_folder)
        data: dict[str, Any] = {
            "users": manifest.counts["users"],
            "items": manifest.items - FIRST_VALUE,
            "events": manifest.counts["events"],
            "counts": {name: value for name, value in manifest.counts.items() if value},
            "mark": mark,
        }
        results: dict[str, Any] = {
            "name": self.config.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["intentrec", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {name: installed(name) or "" for name in ("torch", "torchrec", "ray", "pyarrow")},
            "data": data,
            "config": config_text(self.config),
            "seconds": self.seconds,
            **{key: value for key, value in found.items() if value is not None},
        }
        return results

    def _show(self, results: dict[str, Any]) -> dict[str, Any]:
        from evaluation.report import format_table, write_report

        page = write_report(results, self.config.folder)
        print(f"\n{format_table(results)}\n")
        print(f"results      {join(self.config.folder, RESULTS)}")
        print(f"report       {page}")
        print(f"TensorBoard  tensorboard --logdir {join(self.config.folder, 'models')}")
        return results


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if isinstance(value, float) else str(value)
