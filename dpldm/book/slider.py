"""Committed runs at several ε as one piece of a page, in which the reader moves ε. Nothing is loaded from elsewhere.

Without a script all of it stands below each other; `book/static/book.js` shows one at a time.
"""

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from dpldm.records.names import record_name
from dpldm.runs.chosen import made_today


def runs_by_epsilon(
    records: Iterable[Mapping[str, Any]], dataset: str, method: str = "dpldm", profile: str = "quick"
) -> dict[float, list[Mapping[str, Any]]]:
    """ε → the private runs of a method on one data set, as `dpldm run` makes them today, by seed; ε rises."""
    found: dict[float, list[Mapping[str, Any]]] = {}
    for record in records:
        place = (record["dataset"], record["method"], record["profile"])
        epsilon = record["privacy"].get("epsilon_target")
        if place == (dataset, method, profile) and epsilon is not None and made_today(record):
            found.setdefault(epsilon, []).append(record)
    return {epsilon: sorted(found[epsilon], key=lambda one: one["seed"]) for epsilon in sorted(found)}


def as_html(runs: Mapping[float, list[Mapping[str, Any]]], folder: Path, start: float) -> str:
    """A slider over ε: the mean scores of all seeds, and the images of the first run that has a picture.

    Args:
        runs: from `runs_by_epsilon`. folder: of the records and their pictures. start: the ε to begin at, or near.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("runs: expected at least one ε, got none; commit a record first")
    budgets = list(runs)
    chosen = min(range(len(budgets)), key=lambda place: abs(budgets[place] - start))
    parts = [_part(epsilon, runs[epsilon], folder) for epsilon in budgets]
    slider = f'<input type="range" min="0" max="{len(budgets) - 1}" step="1" value="{chosen}">'
    return f'<div class="epsilon-slider"><label hidden>{slider} <output></output></label>{"".join(parts)}</div>'


def _part(epsilon: float, records: list[Mapping[str, Any]], folder: Path) -> str:
    metrics = [record["metrics"] for record in records]
    right = fmean(score for one in metrics for score in one["accuracy"]["cnn"])
    distance = fmean(one["fid_classifier"] for one in metrics)
    seeds = f"{len(records)} seed{'s' if len(records) > 1 else ''}"
    said = f"ε = {epsilon:g}: a CNN reaches {100 * right:.1f} %, FID (classifier features) {distance:.1f}, {seeds}."
    pictures = [path for one in records if (path := folder / record_name(one)).with_suffix(".png").is_file()]
    image = ""
    if pictures:
        pixels = base64.b64encode(pictures[0].with_suffix(".png").read_bytes()).decode()
        about = html.escape(f"Synthetic images at ε = {epsilon:g}, one row per class.", quote=True)
        image = f'<img src="data:image/png;base64,{pixels}" alt="{about}">'
    return f'<section data-epsilon="{epsilon:g}"><p>{html.escape(said)}</p>{image}</section>'
