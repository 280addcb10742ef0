"""A run in words: its scores, and what is claimed about its privacy."""

from collections.abc import Mapping
from typing import Any

import torch

from dpldm.data import datasets
from dpldm.privacy import statement as privacy_statement
from dpldm.records import names, numbers
from dpldm.runs.experiment import Folders

UNCOVERED = "computed from real images directly; not covered by the privacy guarantee"
NOT_PRIVATE = {
    "epsilon": None,
    "claim": "No differential privacy: this run was made without noise. Treat what it gives like the real images.",
}


def statement(record_privacy: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    """What goes with released images: the `statement` of its privacy, or in as many words that there is none.

    ``dataset``: as the record names it, since the settings were chosen on the images of some; None if it is unknown.
    """
    if record_privacy["epsilon"] is None:
        return NOT_PRIVATE
    return privacy_statement.statement(record_privacy, None if dataset is None else dataset in datasets.DATASETS)


def summary(record: Mapping[str, Any], folders: Folders = Folders()) -> str:
    """A finished run in a few lines: what, how private, how good, how long, where."""
    metrics, seconds = record["metrics"], record["seconds"]
    path = folders.records / names.record_name(record)
    spent = [f"{stage} {numbers.duration(value)}" for stage, value in seconds.items() if value is not None]
    lines = [
        f"{record['dataset']}: {metrics['n_synthetic']:,} synthetic images by {record['method']}, "
        f"{record['profile']}, seed {record['seed']}",
        f"privacy:   {_privacy_in_words(record['privacy'])}",
        *scores_in_words(metrics),
        f"time:      {', '.join(spent)}; {record['device']}",
        f"record:    {path} and a sample grid, {path.with_suffix('.png').name}",
        f"images:    {folders.runs / path.stem / 'synthetic.npz'}",
        f"model:     {folders.runs / path.stem / 'synthesizer.safetensors'}",
    ]
    return "\n".join(lines)


def _privacy_in_words(spent: Mapping[str, Any]) -> str:
    if spent["epsilon"] is None:
        return "none; treat the images like the real ones"
    asked = "" if spent["epsilon_target"] is None else f" of {spent['epsilon_target']:g}"
    return f"ε = {spent['epsilon']:.4g}{asked} spent, δ = {spent['delta']:g}, neighbours: {spent['relation']}"


def scores_in_words(metrics: Mapping[str, Any]) -> list[str]:
    """Accuracies and Fréchet distances of `metrics`, a line for each."""
    names = {"cnn": "CNN", "mlp": "MLP", "logreg": "logistic regression"}
    shown = []
    for kind, name in names.items():
        values = torch.tensor(metrics["accuracy"][kind], dtype=torch.float64)
        if len(values):
            spread = f" ± {100 * float(values.std()):.1f}" if len(values) > 1 else ""
            shown.append(f"{name} {100 * float(values.mean()):.1f}%{spread}")
    if not shown:
        return ["scores:    not measured"]
    seeds = max(len(values) for values in metrics["accuracy"].values())
    lines = [f"accuracy:  {', '.join(shown)} on real test images ({seeds} classifier seed{'s' * (seeds > 1)})"]
    distances = {"classifier": metrics["fid_classifier"], "Inception": metrics["fid_inception"]}
    known = [f"{value:.2f} ({name} features)" for name, value in distances.items() if value is not None]
    reason = metrics.get("fid_inception_note") if metrics["fid_inception"] is None else None
    left_out = f"; left out by Inception features: {reason}" if reason else ""
    return [*lines, f"FID:       {', '.join(known) or 'not measured'}{left_out}"]
