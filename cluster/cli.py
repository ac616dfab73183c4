"""The command line: one verb for each stage, one YAML config with `key.sub=value` overrides.

Bad input ends with one sentence and status 2, Ctrl-C with 130, and SIGTERM with 143 after a checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import Config, overrides_in
from cluster.termination import STATUS, received, sigterm_handled
from ingest.errors import InputError
from ingest.settings import load_content, load_settings
from ingest.storage import is_remote

VERBS = {
    "simulate": "make a log like a streaming service's (the config's section simulate)",
    "import": "turn a public data set into events and items (the config's section import)",
    "prepare": "events and items -> vocabularies, split, per-user sequences in shards",
    "train": "shards -> checkpoints and TensorBoard; goes on where an earlier run of this name stood",
    "evaluate": "checkpoints -> accuracy against baselines: results.json and report/index.html",
    "recommend": "checkpoint -> the best items and the predicted intents of every user, as Parquet",
    "tune": "find better settings of the models on the validation split, by Ray Tune (the config's section tune)",
    "run": "all of these; what is done already is not done again",
    "submit": "any of these as a job on a Ray cluster",
}
JOB_ACTIONS = {
    "list": "which were submitted, since when, and how they stand",
    "follow": "what a job says, from its begin to its end",
    "cancel": "end a job; the same command, submitted again, goes on from its last checkpoint",
}
_RAY_VERBS = ("prepare", "train", "evaluate", "recommend", "run")


def parser() -> argparse.ArgumentParser:
    """The parser of `intentrec`."""
    main_parser = argparse.ArgumentParser(prog="intentrec", description="Train intent-aware recommenders (IntentRec).")
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("config", help="a YAML file, such as configs/demo.yaml")
        sub.add_argument("--with", action="append", default=[], metavar="FILE", dest="files",
                         help="a YAML file of values that replace the config's, such as tune's best.yaml")  # fmt: skip
        sub.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values that replace the config's")
        if verb in _RAY_VERBS:
            sub.add_argument("--workers", type=int, help="the same as cluster.workers=N")
            sub.add_argument("--address", help="a Ray cluster, the same as cluster.address=...")
            sub.add_argument("--no-ray", action="store_true", help="one process, this one, for a debugger")
        if verb == "tune":
            sub.add_argument("--address", help="a Ray cluster, the same as cluster.address=...")
        if verb == "submit":
            sub.add_argument("--address", required=True, help="the cluster's dashboard, http://host:8265")
            sub.add_argument("--verb", default="run", choices=[v for v in VERBS if v != "submit"], dest="submitted")
            sub.add_argument("--no-wait", action="store_true", help="do not follow the job's output until it ends")
    jobs = verbs.add_parser("jobs", help="the jobs of a Ray cluster", description="The jobs of a Ray cluster.")
    actions = jobs.add_subparsers(dest="action", required=True, metavar="action")
    for action, text in JOB_ACTIONS.items():
        sub = actions.add_parser(action, help=text, description=text)
        if action != "list":
            sub.add_argument("job", help="its name, raysubmit_...")
        sub.add_argument("--address", required=True, help="the cluster's dashboard, http://host:8265")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    options, unknown = parser().parse_known_args(arguments)
    overrides = [*getattr(options, "overrides", []), *unknown]
    flags = [word for word in unknown if word.startswith("-") or options.verb == "jobs"]
    if flags:
        parser().error(f"unrecognized arguments: {' '.join(flags)}")
    with sigterm_handled():
        try:
            return _dispatch(options, overrides)
        except InputError as error:
            print(f"intentrec: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            why = "ended by SIGTERM" if received() else "interrupted"
            print(f"intentrec: {why}; the same command goes on from the last checkpoint", file=sys.stderr)
            return STATUS if received() else 130


def _dispatch(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.verb == "jobs":
        return _jobs(options)
    overrides = [*(each for file in options.files for each in overrides_in(file)), *overrides]
    for name in ("workers", "address"):
        value = getattr(options, name, None)
        if value is not None and options.verb != "submit":
            overrides.append(f"cluster.{name}={value}")
    config = load_settings(Config, options.config, overrides)
    if options.verb == "submit":
        return _submit(options, overrides)
    if getattr(options, "no_ray", False) and (options.workers or 1) != 1:
        raise InputError(f"--no-ray runs one process, got --workers {options.workers}")
    from cluster.run_lock import run_lock
    from cluster.stages import Stages

    stages = Stages(config, ray=not getattr(options, "no_ray", False))
    if options.verb in ("simulate", "import"):
        section = config.simulate if options.verb == "simulate" else config.import_
        if section is None:
            raise InputError(f"{options.config}: has no section {options.verb}")
    with run_lock(config.folder, options.verb):
        (stages.make_log if options.verb in ("simulate", "import") else getattr(stages, options.verb))()
    return 0


def _submit(options: argparse.Namespace, overrides: list[str]) -> int:
    from cluster.submit import submit

    _refuse_what_stays(options.config)
    _refuse_local_paths(load_content(options.config, overrides))
    command = ["python", "-m", "cluster.cli", options.submitted, options.config, *overrides]
    submit(command, options.address, working_dir=".", env={}, follow=not options.no_wait)
    return 0


def _jobs(options: argparse.Namespace) -> int:
    from cluster.jobs import cancel_job, follow_job, print_jobs

    if options.action == "list":
        print_jobs(options.address)
    else:
        (follow_job if options.action == "follow" else cancel_job)(options.address, options.job)
    return 0


def _refuse_what_stays(config: str) -> None:
    """A job gets this folder and nothing else: a config elsewhere does not travel."""
    if Path(config).is_absolute() or not Path(config).resolve().is_relative_to(Path.cwd()):
        raise InputError(f"{config}: a job gets the folder {Path.cwd()} alone: give a config by its path below that")


def _refuse_local_paths(content: dict[str, Any]) -> None:
    """A job runs in a copy of this folder that lacks data and goes with the job: relative paths lead nowhere."""
    data, source = content.get("data") or {}, content.get("import") or {}
    paths = {
        "storage": content.get("storage", "runs"),
        "data.events": data.get("events"),
        "data.items": data.get("items"),
        "data.work": data.get("work"),
        "import.source": source.get("source"),
        "recommend.requests": (content.get("recommend") or {}).get("requests"),
    }
    models = content.get("models") or {}
    paths |= {f"models.{name}.log": model.get("log") for name, model in models.items() if isinstance(model, dict)}
    for key, path in paths.items():
        if path is not None and not is_remote(str(path)) and not str(path).removeprefix("file://").startswith("/"):
            raise InputError(
                f"{key}: {str(path)!r} is a folder of this machine; a job takes s3://... or an absolute path that "
                "every node of the cluster sees"
            )


if __name__ == "__main__":
    sys.exit(main())
