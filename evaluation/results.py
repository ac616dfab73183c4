"""The contract of results.json: what an evaluation hands to the report, checked at construction.

Everything that the page, the table at the end of a run and a later comparison need is in this one file, so that
a report can be written again without the models. Numbers are finite: results.json is valid JSON.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evaluation.metrics import HEADLINE
from ingest.settings import Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Protocol(Settings):
    """How the targets were ranked; without it, a number of accuracy means nothing.

    `metric` is the one that models are compared by. `targets` are the held-out interactions counted. `unknown_targets`
    of them have an item that training does not know (a miss, but for what scores items in another way),
    `filtered_targets` one that the user had seen and the filter took out (a miss).
    """

    split: str
    filter_seen: bool
    catalogue_size: Count
    targets: Count
    unknown_targets: Count = 0
    filtered_targets: Count = 0
    validation_metric: str
    metric: str = HEADLINE


class Comparison(Settings):
    """The difference in `metric`, this model minus another on the same targets: 95 % interval and p-value."""

    metric: str
    difference: float
    low: float
    high: float
    p: Probability

    @property
    def verdict(self) -> str:
        """better, worse, or even where the interval holds zero or p is not below 0.05: few users have narrow ones."""
        if self.p >= 0.05:
            return "even"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "even"


class Curve(Settings):
    """How a model learned: [step, training loss] and [epoch, validation metric]."""

    train: list[tuple[Count, float]] = []
    validation: list[tuple[Count, float]] = []


class Tried(Settings):
    """One combination of a baseline's settings, and its value on the validation split."""

    settings: dict[str, bool | int | float | str | None]
    value: float

    @property
    def text(self) -> str:
        """Such as `order=decay, half_life=2`."""
        return ", ".join(f"{name}={'none' if value is None else value}" for name, value in self.settings.items())


class Chosen(Settings):
    """The settings of a baseline that were best in `metric` on the validation split, and all that were tried."""

    settings: dict[str, bool | int | float | str | None]
    metric: str
    tried: list[Tried]

    @property
    def texts(self) -> list[str]:
        """Every combination with its value, the chosen one first and the others from the best on."""
        tried = sorted(self.tried, key=lambda tried: (tried.settings != self.settings, -tried.value))
        return [f"{each.text}: {each.value:.4f}" for each in tried]


class IntentQuality(Settings):
    """How well an intent is predicted (evaluation/intents.py), over the `targets` with a known label.

    Without probabilities there is neither log loss nor calibration error.
    """

    accuracy: Probability
    macro_f1: Probability
    log_loss: float | None = None
    calibration_error: Probability | None = None
    targets: Count


class Training(Settings):
    """What training took: seconds of steps in an epoch and targets a second, both without validation, and the most GiB
    that any worker took, on its GPU where it has one."""

    epochs: Count
    epoch_seconds: float
    targets_per_second: float
    memory_gib: float


class Latency(Settings):
    """What recommending takes (evaluation/timing.py): seconds of one user's request, and users a second in batches."""

    request: float
    users_per_second: float


class ModelResults(Settings):
    """One model: `label` is its name in tables, `inputs` what it sees ("items", "items, features" ...).

    `intents` is accuracy@1, `quality` says more of it, and `attention` the mean weight, each by intent; `versus`
    compares with other models, by their key; `parameters` counts the trained numbers, a baseline has none, and
    `table_parameters` those of them in tables; `seconds` is the time of training, validation included. `chosen`: a
    baseline's settings that were chosen among several. `knows`: what a trained model's scores know besides
    (trainer/scores/), and `live` whether what is recent, or transitions, are counted up to the request. `oracle`: it
    knows the hidden rule of a made log, and is a bound for the others instead of one of them.
    """

    kind: str
    label: str
    metrics: dict[str, float]
    inputs: str = ""
    parameters: Count | None = None
    table_parameters: Count | None = None
    training: Training | None = None
    latency: Latency | None = None
    intents: dict[str, Probability] = {}
    quality: dict[str, IntentQuality] = {}
    attention: dict[str, float] = {}
    best_epoch: Count | None = None
    seconds: float | None = None
    curve: Curve = Curve()
    versus: dict[str, Comparison] = {}
    chosen: Chosen | None = None
    knows: list[str] = []
    live: bool = False
    oracle: bool = False

    @property
    def trained(self) -> bool:
        """Whether it is no baseline."""
        return self.parameters is not None


class Interaction(Settings):
    """One row of the example's history; `time` and `features` are text that is ready to be shown."""

    item: str | int
    title: str
    time: str
    features: dict[str, str] = {}


class Recommendation(Settings):
    """One row of the example's top items. `seen`: the user had it before."""

    item: str | int
    title: str
    score: float
    is_next: bool = False
    seen: bool = False


class Example(Settings):
    """One user of the test set: history oldest first, predicted intents as [label, probability], top items.

    `next_item` is the title of what came next in truth, or None where that is not known.
    """

    user: str | int
    history: list[Interaction]
    top_items: list[Recommendation]
    intents: dict[str, list[tuple[str, Probability]]] = {}
    attention: dict[str, float] = {}
    next_item: str | None = None


class Segment(Settings):
    """A part of the targets (evaluation/segments.py): `by` says by what, `values` is each model's value of the metric
    that models are compared by, and `versus` compares the first model with its control, by the control's key."""

    by: str
    name: str
    targets: Count
    values: dict[str, float]
    versus: dict[str, Comparison] = {}


class Evaluated(Settings):
    """What the workers find: models in the config's order, and sentences about data that were set aside.

    `majority` is, by intent, the accuracy of always predicting the most common label, and `simple` says more of it and
    of other predictions that need no training, by their name and intent. `segments` are parts of the targets.
    """

    protocol: Protocol
    models: dict[str, ModelResults] = Field(min_length=1)
    majority: dict[str, Probability] = {}
    simple: dict[str, dict[str, IntentQuality]] = {}
    segments: list[Segment] = []
    example: Example | None = None
    machine: str = ""
    """That of the first worker, and how many there were."""
    warnings: list[str] = []


class Recommended(Settings):
    """What recommending has made: for how many users, by which model; and how many that ask the log does not have."""

    users: Count
    model: str
    unknown_users: Count = 0


class Results(Settings):
    """The whole of results.json.

    `majority`, `simple` and `segments` as in `Evaluated`. `data` holds counts and
    other facts of the data set, and `warnings`, a list of sentences. `seconds` is the time of each stage.
    """

    name: str
    created: str
    protocol: Protocol
    models: dict[str, ModelResults] = Field(min_length=1)
    command: str = ""
    machine: str = ""
    versions: dict[str, str] = {}
    majority: dict[str, Probability] = {}
    simple: dict[str, dict[str, IntentQuality]] = {}
    segments: list[Segment] = []
    example: Example | None = None
    data: dict[str, int | float | str | list[str] | dict[str, int | float | str]] = {}
    config: str = ""
    seconds: dict[str, float] = {}
