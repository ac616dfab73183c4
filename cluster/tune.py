"""Looks for settings by Ray Tune: every trial is the real training of one model in a process of its own.

A trial trains and validates; nothing of it opens the test split. ASHA compares the trials of each model among
themselves, so that all models have the same budget; the first, which has the config's own settings, is never stopped.

Going on after an interruption does without Ray Tune's restore, which unpickles what is in the storage. Trials are drawn
from the seed; those that have ended are in results.json, and ASHA is told what they reported; one that was running goes
on from its own checkpoint. What Ray Tune writes, <run>/tune/ray, is never read and removed at the end.
"""

from __future__ import annotations

import functools
import logging
import os
import signal

from cluster.config import Config
from cluster.launch import ray_cluster
from cluster.nodes import require, shortage_told
from cluster.termination import handled
from cluster.tune_results import Kept
from cluster.tune_space import Trial, section
from ingest.errors import InputError
from ingest.storage import join, remove

RAY, TRIALS = "ray", "trials"
SETTINGS = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""Ray Tune's: trials run in the current folder, where extensions are, and nothing is logged or shown but by us."""


def tune(config: Config) -> None:
    """Run the trials that are left on the prepared data, keep what they find, and say which settings are the best.

    Raises `InputError` where what was tuned there before is another thing, and where trials were lost;
    `KeyboardInterrupt` where it was interrupted.
    """
    kept = Kept(config)
    left = kept.left()
    print(f"tune: {len(left)} trials, {len(kept.outcomes)} have ended before", flush=True)
    if left:
        with ray_cluster(config.cluster, config.storage):
            lost = _run(config, kept, left)
        if lost:
            raise InputError(f"trials were lost: {'; '.join(lost)}: the same command goes on with them")
        if kept.left():
            raise KeyboardInterrupt
    remove(join(config.tune_folder, TRIALS))
    kept.end()


def _run(config: Config, kept: Kept, left: list[Trial]) -> list[str]:
    """Run the trials `left`; gives those that were lost, each with the reason."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray.tune
    from ray.tune.execution import class_cache

    from cluster.tune_trial import run_trial
    from cluster.tune_watch import Keeper, OneForEachModel

    # Ray would put credentials into its trials' runtime environment, which its logs show
    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    wanted, most = _wanted(config), section(config).at_once
    folder = join(config.tune_folder, TRIALS)
    keeper = Keeper(kept, folder)
    resources = {kind.lower(): number for kind, number in wanted.items()}
    arguments = {"config": config.model_dump(mode="json", by_alias=True), "folder": folder}
    remove(join(config.tune_folder, RAY))
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(functools.partial(run_trial, arguments), resources),
        param_space={"trial": ray.tune.grid_search([trial.model_dump() for trial in left])},
        tune_config=ray.tune.TuneConfig(
            scheduler=OneForEachModel(config, kept.outcomes.values()),
            max_concurrent_trials=most,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=RAY,
            storage_path=config.tune_folder,
            verbose=0,
            callbacks=[keeper],
            failure_config=ray.tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    ours = [handled(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGUSR1)]
    try:
        with ours[0], ours[1], shortage_told(wanted, 1):  # Ray Tune's own would stay where nothing has interrupted it
            tuner.fit()
    finally:
        remove(join(config.tune_folder, RAY))
    return keeper.lost


def _wanted(config: Config) -> dict[str, float]:
    """The resources of one trial. Refused where the cluster has fewer and does not grow."""
    import ray

    tune = section(config)
    gpus = tune.gpus_per_trial
    if gpus is None:
        gpus = 1 if config.cluster.gpus is not False and ray.cluster_resources().get("GPU", 0) else 0
    wanted = {"CPU": tune.cpus_per_trial} | ({"GPU": gpus} if gpus else {})
    require(wanted, 1, "tune.cpus_per_trial, tune.gpus_per_trial: a trial needs")
    return wanted
