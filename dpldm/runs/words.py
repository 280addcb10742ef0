"""A run in words: its scores, and what is claimed about its privacy."""

from collections.abc import Mapping
from typing import Any

import torch

from dpldm.data import datasets
from dpldm.privacy import statement as privacy_statement
from dpldm.records import names, numbers
from dpldm.runs.experiment import Folders

UNCOVERED = "computed from real images directly; not covered by the privacy guarantee"
LEARNERS = {"knn": "3-NN", "forest": "forest", "boosting": "boosting", "svm": "SVM"}
JUDGES = {"forest": "forest", "cnn": "CNN"}
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
    return privacy_statement.statement(record_privacy, None if dataset is None else datasets.tuned_on(dataset))


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
    """Accuracies, Fréchet distances and two-sample tests of `metrics`, a line for each that was measured."""
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
    if others := {kind: values for kind, values in metrics.get("learners", {}).items() if kind in LEARNERS}:
        means = [
            f"{LEARNERS[kind]} {100 * sum(others[kind]) / len(others[kind]):.1f}%"
            for kind in LEARNERS
            if kind in others
        ]
        lines.append(f"learners:  {', '.join(means)} on real test images (nobody tuned for these)")
    distances = {"classifier": metrics["fid_classifier"], "Inception": metrics["fid_inception"]}
    known = [f"{value:.2f} ({name} features)" for name, value in distances.items() if value is not None]
    reason = metrics.get("fid_inception_note") if metrics["fid_inception"] is None else None
    left_out = f"; left out by Inception features: {reason}" if reason else ""
    if told := metrics.get("two_sample"):
        areas = [_area_in_words(name, judge, told) for judge, name in JUDGES.items() if judge in told]
        lines.append(f"AUC:       {'; '.join(areas)} at telling them from real images (0.5: can't)")
    shares = {name: metrics.get(name) for name in ("precision", "recall", "coverage")}
    told_shares = ", ".join(f"{name} {value:.3f}" for name, value in shares.items() if value is not None)
    lines.append(f"FID:       {', '.join(known) or 'not measured'}{left_out}")
    return lines + ([f"fidelity:  {told_shares}"] if told_shares else [])


def _area_in_words(name: str, judge: str, told: Mapping[str, Any]) -> str:
    """One judge's area with its interval, then that in few grey levels and that of real images."""
    measured = told[judge]
    views = {"in few greys": f"{judge}_greys", "real": f"{judge}_real"}
    others = [f"{view} {told[key]['auc']:.3f}" for view, key in views.items() if key in told]
    return ", ".join([f"{name} {measured['auc']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})", *others])
