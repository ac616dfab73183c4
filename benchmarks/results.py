"""docs/results.md and its figures, made anew from what is kept in docs/results; `make results` calls it.

    docs/results/<log>.json          what `python -m benchmarks.main_job configs/<log>.yaml` printed: section <log>
    docs/results/paper/<log>.json    what `python -m benchmarks.paper` keeps: a part of "The paper's tables"
    docs/results/<log>.svg           the section's figure

A section is replaced as a whole where its log has a file; one that has none yet stays as it is, and so do all others,
which are words. A new log's comes before `BEFORE`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.main_job import section
from benchmarks.paper_tables import FIRST, NAMES, tables
from evaluation.charts import interval_chart
from evaluation.results import Comparison

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
BEFORE = "What this says"
PAPER = "The paper's tables"
LOGS = ("ml-1m", "ml-100k", "globo", "kuairand", "retailrocket", "demo")
"""Those that the tables are to be filled for; `demo` is the simulated one."""
ABOUT = """\
The tables of the paper (arXiv 2408.05353), with its numbers beside ours. Its data are private, and its numbers are
relative: of the models to TransAct, of the ablations to V1, of one intent alone to V0. LSTM, GRU, Transformer, SASRec
and BERT4Rec see items alone; TransAct, HSTU and all others see the metadata ([models.md](models.md)). None knows the
time of the request, and all have the same budget of epochs."""
STYLE = (
    "<style>text{font:12px sans-serif;fill:#1b2330}.tick,.axis{fill:#5c6878}.grid{stroke:#e2e6ec}"
    ".zero{stroke:#5c6878;stroke-dasharray:4 3}.interval line{stroke:currentColor;stroke-width:2.5}"
    "circle{fill:currentColor}.better{color:#15803d}.worse{color:#b42318}.even{color:#6b7686}</style>"
)


def made(text: str, kept: Path) -> tuple[str, dict[str, str]]:
    """The page `text` with the sections of all logs in the folder `kept`, and the figures' SVG by their file's name."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    head, sections = parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))
    figures = {}
    for path in sorted(kept.glob("*.json")):
        run = _read(path)
        body = section(run).partition("\n")[2].strip("\n")
        if run["versus"]:
            first = next(iter(run["models"]))
            figures[f"{path.stem}.svg"] = _figure(
                run["versus"], {name: f"{first} against {name}" for name in run["versus"]}
            )
            body += f"\n\n![Differences with 95 % intervals]({kept.name}/{path.stem}.svg)"
        sections = _with(sections, path.stem, body)
    runs = {path.stem: _read(path) for path in sorted((kept / "paper").glob("*.json"))}
    for name, run in runs.items():
        if run["versus"]:
            labels = {row: f"{NAMES[FIRST].split()[0]} against {row}" for row in run["rows"] if row in run["versus"]}
            figures[f"paper/{name}.svg"] = _figure(run["versus"], labels)
    if runs:
        figure = "\n\n![Differences with 95 % intervals]({}/paper/{}.svg)"
        filled = [tables(run) + figure.format(kept.name, name) * bool(run["versus"]) for name, run in runs.items()]
        missing = [name for name in LOGS if name not in runs]
        waiting = [f"Not run: {', '.join(missing)}."] if missing else []
        sections = _with(sections, PAPER, "\n\n".join([ABOUT, *filled, *waiting]))
    return head + "".join(f"## {name}\n{body}" for name, body in sections.items()), figures


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _with(sections: dict[str, str], name: str, body: str) -> dict[str, str]:
    """`sections` with one more, or another one in its place."""
    body = f"\n{body}\n\n"
    if name in sections or BEFORE not in sections:
        return {**sections, name: body}
    return {
        key: text for each in sections.items() for key, text in ([(name, body)] if each[0] == BEFORE else []) + [each]
    }


def _figure(versus: dict[str, Any], labels: dict[str, str]) -> str:
    """The intervals of all comparisons; it needs no page around it."""
    chart = str(interval_chart([(label, Comparison(**versus[name])) for name, label in labels.items()]))
    tag, _, rest = chart.partition(">")
    return f'{tag} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


if __name__ == "__main__":
    kept = PAGE.with_suffix("")
    text, figures = made(PAGE.read_text(), kept)
    PAGE.write_text(text)
    for name, figure in figures.items():
        (kept / name).write_text(figure)
    print(f"{PAGE}, {len(figures)} figures in {kept}")
