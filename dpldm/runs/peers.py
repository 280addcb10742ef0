"""Records scored by the peers' protocol, beside the scores of this book."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.data import datasets
from dpldm.evaluation import peers
from dpldm.evaluation.classifiers import Labelled
from dpldm.evaluation.settings import LabelledImages
from dpldm.records import files
from dpldm.runs.experiment import Folders, Progress, choose_device, derived_seed
from dpldm.runs.rescoring import Adder, RescoringError, add_missing, opened

REDUCED_NAME = f"{peers.PROTOCOL}-reduced"


def add_peers(
    path: Path,
    folders: Folders,
    progress: Progress,
    remake: bool = False,
    device: str = "auto",
    settings: peers.PeersSettings = peers.FULL,
) -> list[str]:
    """Score the images of a record by the peers' protocol, unless that was done, and write that into `metrics.peers`.

    There `dpimagebench` stands for the published settings alone; any others are `dpimagebench-reduced`. Beside the
    scores stand the δ of the record and that of the peers, 1/(N ln N) for N training images.

    Args:
        path, folders, remake: as for `dpldm.runs.rescoring.add_missing`.

    Returns:
        What was added; nothing where it was there.

    Raises:
        RescoringError: as for `add_missing`; and `refuse_days`, before any image is made again.
    """
    name, where, record = name_of(settings), choose_device(device), files.read(path)
    if name in record["metrics"].get("peers", {}):
        return []
    if record["dataset"] in datasets.DATASETS:
        real = datasets.load(record["dataset"], "test", folders.data)
        refuse_days(record["metrics"]["n_synthetic"], real, settings, where)
    with opened(path, folders, progress, remake, device) as run:
        seed = derived_seed(record["seed"], "peers")
        scores = score(run.images, run.labels, run.test, settings, where, seed, progress)
        n = len(run.train)
        deltas = {"delta": record["privacy"]["delta"], "delta_of_peers": 1 / (n * math.log(n))}
        run.write({"peers": {name: scores | deltas}}, f"peers-{name}", where)
    progress.say(in_words(scores))
    return [name]


def score(
    images: Tensor,
    labels: Tensor,
    real_test: LabelledImages,
    settings: peers.PeersSettings,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """`dpldm.evaluation.peers.peers_scores` of images (N, C, H, W) and labels (N,), unless that would take days."""
    refuse_days(len(images), real_test, settings, device)
    return peers.peers_scores(
        Labelled(images, labels), real_test, settings, device, seed, lambda share: progress.track("evaluation", share)
    )


def adder(protocol: str, reduced: bool) -> Adder:
    """What adds scores by a protocol to a record: "book" or that of the peers."""
    return add_missing if protocol == "book" else partial(add_peers, settings=settings_of(reduced))


def settings_of(reduced: bool) -> peers.PeersSettings:
    """The published settings, or those for a processor."""
    return peers.REDUCED if reduced else peers.FULL


def name_of(settings: peers.PeersSettings) -> str:
    """The name of a protocol in records: that of the peers for their settings alone."""
    return peers.PROTOCOL if settings == peers.FULL else REDUCED_NAME


def refuse_days(count: int, real: LabelledImages, settings: peers.PeersSettings, device: torch.device) -> None:
    """Stop where a processor would train the published classifiers on so many images like the real ones.

    Raises:
        RescoringError: how many hours it would take here, and the way out.
    """
    if device.type != "cpu" or settings != peers.FULL:
        return
    hours = peers.expected_hours(tuple(real.images.shape[1:]), real.num_classes, count, settings, device)
    raise RescoringError(
        f"expected a GPU for the peers' protocol, got a processor, which needs about {hours:,.0f} hours: use "
        "--device cuda, or --reduced for a small version that is called so"
    )


def in_words(scores: Mapping[str, Any]) -> str:
    """Scores by the peers' protocol in a line.

    >>> in_words({"accuracy": {"wrn": 0.9}, "best": 0.9, "mean": 0.9, "reduced": True})
    'peers:     wrn 90.0%, best 90.0%, mean 90.0% on real test images (reduced: not what peers report)'
    """
    each = ", ".join(f"{kind} {100 * value:.1f}%" for kind, value in scores["accuracy"].items())
    told = f"peers:     {each}, best {100 * scores['best']:.1f}%, mean {100 * scores['mean']:.1f}% on real test images"
    return told + (" (reduced: not what peers report)" if scores["reduced"] else "")
