"""How faithful and how useful synthetic images are, measured with real images that privacy does not cover.

Everything here reads real images directly (the real test set, and for some scores the real training set), so the scores
are for research: they are no part of the private release and are charged to no budget.

Usefulness: classifiers are trained on 90% of the synthetic images, the epoch is chosen on the other 10% of the
SYNTHETIC images, and each classifier is scored once on the real test set. Fidelity: Fréchet distance (FID), improved
precision and recall, coverage, and a nearest-neighbour check for memorised training images.

Work is split into parts so that a caller can save each one and skip what it already has:

    for name, scores in evaluation_parts(images, labels, real_train, real_test, done=saved): save(name, scores)
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from dpldm.data import pixel_fault

CLASSIFIERS = ("cnn", "mlp", "logreg")
PARTS = ("cnn", "fidelity", "memorisation", "mlp", "logreg", "fid_inception")  # longest first, to pack the cores well
FEATURE_DIMENSIONS = 128  # width of the layer that `fid_classifier` looks at
VALIDATION_SHARE = 0.1  # of the synthetic set, for choosing the epoch
NEIGHBOURS = 3  # k of improved precision and recall (Kynkäänniemi et al. 2019)
COVERAGE_NEIGHBOURS = 5  # k of coverage (Naeem et al. 2020)
CHUNK = 500  # rows of a distance matrix held at once: 500 x 60,000 float32 are 120 MB
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
INCEPTION_MODES = ("never", "if-file", "download")
INCEPTION_VARIABLE = "DPLDM_INCEPTION_WEIGHTS"
INCEPTION_DIMENSIONS = 2048
CONNECT_SECONDS = 5.0  # a server that has not answered by then counts as unreachable

Progress = Callable[[float, str], None]  # (share of the work done in [0, 1], name of the part)


class LabelledImages(Protocol):
    """What this module needs of a real data set: `dpldm.data.ImageData` has it."""

    @property
    def name(self) -> str: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def sha256(self) -> dict[str, str]: ...  # source file -> sum: tells whether a shipped feature network fits


@dataclass(frozen=True)
class EvaluationSettings:
    """How much work an evaluation does; the protocol is the same for all values.

    classifier_seeds: classifiers of each kind, seeded seed, seed + 1, ...
    cnn_epochs, mlp_epochs, logreg_epochs: passes over the training part of the synthetic set, each at least 1.
    batch_size, learning_rate: of Adam; the rate is constant, or the peak of one cycle where one_cycle is true.
    one_cycle: warm up and anneal within the epochs (Smith and Topin 2018), which reaches in few epochs what the
        constant rate of the literature reaches in many.
    bfloat16: multiply in bfloat16 while the CNN trains, where the CPU does so natively; weights and the final score
        stay float32.
    feature_epochs: for the feature network of a data set that has none shipped.
    n_train_images: most training images in fid_classifier_train.
    n_feature_images: most images of either side in precision, recall and coverage.
    n_memorisation_images: most synthetic images, and most test images, in the memorisation check.
    inception: "never", "if-file" (only with a local weights file, never the network) or "download".
    n_inception_images: most images of either side in the Inception FID; None for all.
    """

    classifier_seeds: int = 3
    cnn_epochs: int = 5
    mlp_epochs: int = 5
    logreg_epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 4e-3
    one_cycle: bool = True
    bfloat16: bool = True
    feature_epochs: int = 3
    n_train_images: int = 20_000
    n_feature_images: int = 5_000
    n_memorisation_images: int = 2_000
    inception: str = "if-file"
    n_inception_images: int | None = 10_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("one_cycle", "bfloat16", "inception") or (name == "n_inception_images" and value is None):
                continue
            if not value > 0:
                raise ValueError(f"evaluation setting {name} must be above 0, got {value}")
        if self.classifier_seeds > 1_000:
            raise ValueError(
                f"expected 1 to 1,000 classifiers of each kind, got {self.classifier_seeds}: ask for fewer"
            )
        if self.inception not in INCEPTION_MODES:
            raise ValueError(f"inception must be one of {', '.join(INCEPTION_MODES)}, got {self.inception!r}")

    def epochs(self, kind: str) -> int:
        """Passes for one of CLASSIFIERS."""
        return {"cnn": self.cnn_epochs, "mlp": self.mlp_epochs, "logreg": self.logreg_epochs}[kind]


# DPDM's published script takes 50 epochs at a constant 3e-4, best epoch on synthetic validation; ours take fewer
EVALUATION = {
    "smoke": EvaluationSettings(
        classifier_seeds=2,
        cnn_epochs=1,
        mlp_epochs=1,
        logreg_epochs=1,
        feature_epochs=1,
        n_feature_images=500,
        n_memorisation_images=200,
        inception="never",
    ),
    "quick": EvaluationSettings(),
    "paper": EvaluationSettings(
        cnn_epochs=10,
        mlp_epochs=10,
        logreg_epochs=10,
        bfloat16=False,
        feature_epochs=8,
        n_train_images=1_000_000,
        n_feature_images=10_000,
        n_memorisation_images=10_000,
        n_inception_images=None,
    ),
}


# --- the whole evaluation ---------------------------------------------------------------------------------------------


def evaluate(
    synthetic_images: Tensor,
    synthetic_labels: Tensor,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings = EVALUATION["quick"],
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    inception_weights: Path | None = None,
) -> dict[str, Any]:
    """All scores of a synthetic set as one dictionary of plain numbers; see `evaluation_parts` for the arguments."""
    parts = evaluation_parts(
        synthetic_images,
        synthetic_labels,
        real_train,
        real_test,
        settings,
        device,
        seed,
        progress=progress,
        inception_weights=inception_weights,
    )
    return merge(scores for _, scores in parts)


def merge(partials: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary of what `evaluation_parts` yielded; nested dictionaries are united.

    >>> merge([{"recall": 0.5}, {"accuracy": {"mlp": [0.9]}}, {"accuracy": {"cnn": [0.95]}}])
    {'recall': 0.5, 'accuracy': {'mlp': [0.9], 'cnn': [0.95]}}
    """
    merged: dict[str, Any] = {}
    for scores in partials:
        for key, value in scores.items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def evaluation_parts(
    synthetic_images: Tensor,
    synthetic_labels: Tensor,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings = EVALUATION["quick"],
    device: torch.device | str = "cpu",
    seed: int = 0,
    done: Collection[str] = (),
    progress: Progress | None = None,
    inception_weights: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name of the part, its metrics) for each of PARTS that is not in `done`, in the order they finish.

    synthetic_images: float32 (N, C, H, W) in [0, 1] with N > 128. synthetic_labels: int64 (N,), every class present.
    real_train, real_test: real images of the same shape and classes. Nothing is chosen by looking at real_test.
    seed: of classifiers and of subsets. Equal arguments give equal metrics on one machine.
    progress: called as progress(share_done, part), from any thread; None draws a bar if stderr is a terminal.
    inception_weights: file for the Inception FID, see `find_inception_weights`.

    The arguments are checked before the first part, by this call itself: ValueError, one line.
    """
    check_synthetic(synthetic_images, synthetic_labels, real_train, real_test)
    todo = [part for part in PARTS if part not in done]
    weights = None
    if "fid_inception" in todo and settings.inception != "never":
        weights = find_inception_weights(inception_weights)
    synthetic = _Labelled(synthetic_images, synthetic_labels)
    return _parts(synthetic, real_train, real_test, settings, torch.device(device), seed, todo, progress, weights)


def _parts(
    synthetic: _Labelled,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
    todo: list[str],
    progress: Progress | None,
    weights: Path | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    with _Reporter(max(1, _work(todo, settings)), progress) as reporter:
        jobs: dict[str, list[Callable[[], Any]]] = {}
        for part in todo:
            if part in CLASSIFIERS:
                seeds = range(seed, seed + settings.classifier_seeds)
                jobs[part] = [
                    partial(_train_and_score, part, synthetic, real_test, settings, device, one, reporter)
                    for one in seeds
                ]
            elif part == "fidelity":
                jobs[part] = [partial(_fidelity, synthetic, real_train, real_test, settings, device, seed)]
            elif part == "memorisation":
                images = (synthetic.images, real_train.images, real_test.images)
                jobs[part] = [partial(memorisation, *images, settings.n_memorisation_images, seed, device)]
        for part, results in _in_parallel(jobs, device, reporter):
            if part in CLASSIFIERS:
                yield part, _usefulness_metrics(part, results, settings, device)
            else:
                reporter.add(_WORK[part], part)
                yield part, results[0] if part == "fidelity" else {part: results[0]}
        if "fid_inception" in todo:
            yield "fid_inception", _inception_part(synthetic.images, real_test.images, settings, weights, device, seed)


def _in_parallel(
    jobs: dict[str, list[Callable[[], Any]]], device: torch.device, reporter: _Reporter
) -> Iterator[tuple[str, list[Any]]]:
    """Yields (part, the results of its jobs) as parts finish.

    On a CPU each job has one thread, so that scores do not depend on the number of cores, and nothing waits.
    """
    if not jobs:
        return
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    executor = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {part: [executor.submit(job) for job in group] for part, group in jobs.items()}
        waiting = list(futures)
        for finished in as_completed([future for group in futures.values() for future in group]):
            finished.result()  # raises what the job raised
            for part in [part for part in waiting if all(future.done() for future in futures[part])]:
                waiting.remove(part)
                yield part, [future.result() for future in futures[part]]
    finally:
        reporter.stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def check_synthetic(images: Tensor, labels: Tensor, real_train: LabelledImages, real_test: LabelledImages) -> None:
    """Raises a ValueError of one line unless the synthetic set can be scored against the real ones."""
    shape = tuple(real_train.images.shape[1:])
    if tuple(real_test.images.shape[1:]) != shape or real_test.num_classes != real_train.num_classes:
        arrived = f"{_shape_in_words(real_test.images.shape[1:])} and {real_test.num_classes}"
        expected = f"{_shape_in_words(shape)} and {real_train.num_classes} classes"
        raise ValueError(f"real test images differ from the training images: expected {expected}, got {arrived}")
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape:
        expected = f"expected synthetic images like the real ones, float32 {_shape_in_words(shape)}"
        arrived = f"{str(images.dtype).removeprefix('torch.')} {_shape_in_words(images.shape[1:])}"
        raise ValueError(f"{expected}, got {arrived}: resize or convert them, or score them against other images")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        expected = f"int64 ({len(images)},)"
        raise ValueError(f"synthetic labels must be {expected}, got {labels.dtype} {tuple(labels.shape)}")
    if len(images) <= FEATURE_DIMENSIONS:
        raise ValueError(
            f"{len(images)} synthetic images are too few: FID needs more than its {FEATURE_DIMENSIONS} feature "
            "dimensions; draw at least 1,000, and 60,000 for a figure to compare"
        )
    if fault := pixel_fault(images):
        raise ValueError(f"synthetic images: {fault}")
    present = set(labels.unique().tolist())
    wrong, missing = present - set(range(real_train.num_classes)), set(range(real_train.num_classes)) - present
    if wrong:
        raise ValueError(f"synthetic labels must be 0..{real_train.num_classes - 1}, got {sorted(wrong)[0]}")
    if missing:
        raise ValueError(f"no synthetic image has label {sorted(missing)[0]}; draw images of every class")


def _shape_in_words(shape: Sequence[int]) -> str:
    return f"(N, {', '.join(map(str, shape))})"


@dataclass(frozen=True)
class _Labelled:
    images: Tensor
    labels: Tensor


# --- usefulness: classifiers trained on synthetic images --------------------------------------------------------------


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier at its chosen epoch (1, 2, ...) with its share of right answers on the held-out synthetic tenth."""

    network: nn.Module
    epoch: int
    validation_accuracy: float


def train_classifier(
    kind: str,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: EvaluationSettings = EVALUATION["quick"],
    device: torch.device | str = "cpu",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> TrainedClassifier:
    """Trains "cnn", "mlp" or "logreg" on 90% of (images, labels) and keeps the epoch that is best on the other 10%.

    No real image can influence the choice: none is an argument. The split, the first weights, the order and the
    dropout come from `seed` alone; torch's global generator is neither read nor moved. Source of the architectures
    and of the selection: Cao et al. 2021 (DP-Sinkhorn), Dockhorn et al. 2023 (DPDM).
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held_out = max(1, round(VALIDATION_SHARE * len(images)))
    chosen, rest = order[:held_out], order[held_out:]
    network = build_network(kind, tuple(images.shape[1:]), num_classes, generator, device)
    bfloat16 = kind == "cnn" and settings.bfloat16 and uses_bfloat16(device)
    best_accuracy, best_epoch, best_state = -1.0, 0, network.state_dict()
    for epoch, complete in fit(network, images, labels, rest, settings.epochs(kind), settings, generator, bfloat16):
        on_batch()
        if not complete:
            continue
        reached = accuracy(network, images, labels, chosen, bfloat16=bfloat16)
        if reached > best_accuracy:
            best_accuracy, best_epoch = reached, epoch
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return TrainedClassifier(network, best_epoch, best_accuracy)


def build_network(
    kind: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator,
    device: torch.device | str,
    dropout: bool = True,
) -> nn.Sequential:
    """An untrained classifier for images (N, C, H, W) in [0, 1], with torch's default initialisation from `generator`.

    "logreg": one linear layer. "mlp": one hidden layer of 100. "cnn": 3x3 convolutions 32-64-128, each of the first two
    followed by max-pool, ReLU and dropout 0.5, then 128 hidden units with dropout 0.5 (Cao et al. 2021). Sides below 18
    are padded by 1, or nothing would be left of them. The hidden 128 are the features of `fid_classifier`, for which
    dropout is left out: it slows learning down more than it helps in a few epochs.
    """
    channels, height, width = image_shape
    pixels = channels * height * width
    padding = 1 if min(height, width) < 18 else 0

    def left(side: int) -> int:
        shrink = 2 - 2 * padding
        return ((side - shrink) // 2 - shrink) // 2 - shrink

    masks = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    with torch.device("meta"):  # allocate nothing and draw nothing from the global generator
        layers: dict[str, Callable[[], list[nn.Module]]] = {
            "logreg": lambda: [nn.Flatten(), nn.Linear(pixels, num_classes)],
            "mlp": lambda: [nn.Flatten(), nn.Linear(pixels, 100), nn.ReLU(), nn.Linear(100, num_classes)],
            "cnn": lambda: [
                *(nn.Conv2d(channels, 32, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU()),
                HalfDropout(masks if dropout else None),
                *(nn.Conv2d(32, 64, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU()),
                HalfDropout(masks if dropout else None),
                *(nn.Conv2d(64, 128, 3, padding=padding), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(128 * left(height) * left(width), FEATURE_DIMENSIONS), nn.ReLU()),
                *(HalfDropout(masks if dropout else None), nn.Linear(FEATURE_DIMENSIONS, num_classes)),
            ],
        }
        network = nn.Sequential(*layers[kind]())
    network.to_empty(device=device)
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert layer.bias is not None
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in (layer.weight, layer.bias):
                start = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound
                parameter.data.copy_(start)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class HalfDropout(nn.Module):
    """Dropout at 0.5 that draws from its own generator, so that networks can train in parallel threads and repeat.

    Without a generator nothing is dropped.

    On a CPU one random integer gives eight mask values, since `nn.Dropout` spends a quarter of an epoch on its mask.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.generator is None:
            return values
        count = values.numel()
        if values.device.type == "cpu":
            words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(generator=self.generator)
            keep = (words.view(torch.uint8)[:count] & 1).to(values.dtype)
        else:
            draws = torch.rand(count, generator=self.generator, device=values.device)
            keep = (draws < 0.5).to(values.dtype)
        return values * keep.mul_(2).as_strided(values.shape, values.stride())


def uses_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is worth it: a CPU that multiplies it natively (emulation is slower than float32)."""
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    epochs: int,
    settings: EvaluationSettings,
    generator: torch.Generator,
    bfloat16: bool = False,
) -> Iterator[tuple[int, bool]]:
    """Minimises the cross-entropy on images[indices] with Adam.

    Yields after each batch (epoch 1, 2, ..., whether that epoch is now complete).
    """
    device = next(network.parameters()).device
    steps = _batches(len(indices), settings)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=fused)
    total = epochs * steps if settings.one_cycle else 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step, total))
    for epoch in range(1, epochs + 1):
        network.train()
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        for step, batch in enumerate(shuffled.split(settings.batch_size), start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(_network_input(images[batch], device))
                loss = functional.cross_entropy(logits, labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield epoch, step == steps


def _batches(count: int, settings: EvaluationSettings) -> int:
    return math.ceil(count / settings.batch_size)


def _one_cycle(step: int, total: int, warm_up: float = 0.2) -> float:
    """Share of the peak learning rate: up along half a cosine for `warm_up` of the steps, then down; total 0: always 1.

    >>> [round(_one_cycle(step, 100), 2) for step in (0, 10, 20, 60, 100)], _one_cycle(5, 0)
    ([0.04, 0.52, 1.0, 0.5, 0.0], 1.0)
    """
    if not total:
        return 1.0
    rise = warm_up * total
    if step < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - rise) / (total - rise)))) / 2


def _network_input(images: Tensor, device: torch.device) -> Tensor:
    """Pixels in [-1, 1], as in the reference classifiers."""
    return (images.to(device) * 2 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(
    network: nn.Module, images: Tensor, labels: Tensor, indices: Tensor | None = None, bfloat16: bool = False
) -> float:
    """Share of images (or of images[indices]) whose largest output is at their label, in [0, 1]."""
    network.eval()
    device = next(network.parameters()).device
    indices = torch.arange(len(images)) if indices is None else indices
    right = 0
    for batch in indices.split(1000):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            guesses = network(_network_input(images[batch], device)).argmax(1).cpu()
        right += int((guesses == labels[batch]).sum())
    return right / len(indices)


class _Stopped(Exception):
    """The caller went away while classifiers were training."""


def _train_and_score(
    kind: str,
    synthetic: _Labelled,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
    reporter: _Reporter,
) -> tuple[float, TrainedClassifier]:
    """(accuracy on the real test set, the classifier); the last line is the only look at the test set."""
    share = _WORK[kind] / _batches(round((1 - VALIDATION_SHARE) * len(synthetic.labels)), settings)

    def on_batch() -> None:
        reporter.add(share, kind)
        if reporter.stop.is_set():
            raise _Stopped

    count = real_test.num_classes
    trained = train_classifier(kind, synthetic.images, synthetic.labels, count, settings, device, seed, on_batch)
    return accuracy(trained.network, real_test.images, real_test.labels), trained


def _usefulness_metrics(
    kind: str, results: list[tuple[float, TrainedClassifier]], settings: EvaluationSettings, device: torch.device
) -> dict[str, Any]:
    chosen = [
        {"epoch": trained.epoch, "synthetic_validation_accuracy": trained.validation_accuracy} for _, trained in results
    ]
    arithmetic = "bfloat16" if kind == "cnn" and settings.bfloat16 and uses_bfloat16(device) else "float32"
    return {
        "accuracy": {kind: [score for score, _ in results]},
        "selection": {kind: chosen},
        "arithmetic": {kind: arithmetic},
    }


# --- features of a classifier trained on real images ------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureNetwork:
    """A classifier whose hidden layer serves as features, and `metadata` on how it was made."""

    network: nn.Sequential
    metadata: dict[str, str]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """float64 (N, 128) on the CPU, for images float32 (N, C, H, W) in [0, 1]."""
        self.network.eval()
        device = next(self.network.parameters()).device
        hidden = self.network[:-2]  # without the last dropout and the output layer
        return torch.cat([hidden(_network_input(batch, device)).double().cpu() for batch in images.split(1000)])


def train_feature_network(
    images: Tensor, labels: Tensor, num_classes: int, seed: int, epochs: int = 8, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Trains the CNN of `build_network` on REAL images: not private, only for measuring.

    The same seed repeats it on one machine, given the same number of threads.
    """
    generator = torch.Generator().manual_seed(seed)
    network = build_network("cnn", tuple(images.shape[1:]), num_classes, generator, device, dropout=False)
    everything = torch.arange(len(images))
    for _ in fit(network, images, labels, everything, epochs, EVALUATION["quick"], generator):
        pass
    metadata = {
        "architecture": "conv 32-64-128, hidden 128, no dropout",
        "image_shape": "x".join(str(size) for size in images.shape[1:]),
        "num_classes": str(num_classes),
        "training": f"real images, {epochs} epochs, not private, for measuring only",
        "seed": str(seed),
    }
    return FeatureNetwork(network, metadata)


def save_feature_network(features: FeatureNetwork, path: Path) -> None:
    """Writes float16 weights and the metadata as safetensors."""
    state = {name: value.half().contiguous().cpu() for name, value in features.network.state_dict().items()}
    save_file(state, path, metadata=features.metadata)


def ship_feature_network(real_train: LabelledImages, real_test: LabelledImages, seed: int = 0, epochs: int = 5) -> Path:
    """Makes the file that `load_feature_network` reads; its metadata say how good the stored network is."""
    path = WEIGHTS_FOLDER / f"{real_train.name}.safetensors"
    made = train_feature_network(real_train.images, real_train.labels, real_train.num_classes, seed, epochs)
    made.network.half().float()  # score the numbers that are stored
    reached = accuracy(made.network, real_test.images, real_test.labels)
    sums = " ".join(sorted(real_train.sha256.values()))
    made.metadata.update(dataset=real_train.name, test_accuracy=f"{reached:.4f}", data_sha256=sums)
    save_feature_network(made, path)
    return path


def load_feature_network(dataset: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network shipped for "mnist" or "fashion_mnist"; the file holds numbers only, so loading runs no code.

    Raises FileNotFoundError if none is shipped for `dataset`, ValueError if the file is damaged.
    """
    path = WEIGHTS_FOLDER / f"{dataset}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no feature network is shipped for {dataset!r}: train one with train_feature_network")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, not a dict
        shape = tuple(int(size) for size in metadata["image_shape"].split("x"))
        network = build_network("cnn", shape, int(metadata["num_classes"]), torch.Generator(), device)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"damaged feature network {path.name}: restore the file from a fresh copy") from error
    return FeatureNetwork(network, {**metadata, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def feature_network_for(
    real_train: LabelledImages, settings: EvaluationSettings, device: torch.device | str, seed: int
) -> tuple[FeatureNetwork, str]:
    """The shipped network where it fits, else one trained on `real_train` now; and a sentence on which it is."""
    try:
        shipped = load_feature_network(real_train.name, device)
    except FileNotFoundError:
        shipped = None
    if shipped and set(shipped.metadata["data_sha256"].split()) & set(
        real_train.sha256.values()
    ):  # not only a namesake
        return shipped, f"classifier trained on real images (shipped, sha256 {shipped.metadata['sha256'][:12]})"
    classes, epochs = real_train.num_classes, settings.feature_epochs
    trained = train_feature_network(real_train.images, real_train.labels, classes, seed, epochs, device)
    return trained, f"classifier trained on real images (now, {epochs} epochs, seed {seed})"


# --- fidelity ---------------------------------------------------------------------------------------------------------


def _fidelity(
    synthetic: _Labelled,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    network, description = feature_network_for(real_train, settings, device, seed)
    generator = torch.Generator().manual_seed(seed)
    train_images = _some(real_train.images, settings.n_train_images, generator)
    of_synthetic, of_test, of_train = (
        network.features(images) for images in (synthetic.images, real_test.images, train_images)
    )
    some = {"synthetic": of_synthetic, "test": of_test}
    chosen = {name: _some(features, settings.n_feature_images, generator) for name, features in some.items()}
    precision, recall = precision_recall(chosen["test"], chosen["synthetic"])
    return {
        "features": description,
        "feature_dimensions": FEATURE_DIMENSIONS,
        "fid_classifier": _fid_or_none(of_synthetic, of_test),
        "fid_classifier_train": _fid_or_none(of_synthetic, of_train),
        "precision": precision,
        "recall": recall,
        "coverage": coverage(chosen["test"], chosen["synthetic"]),
        "n_synthetic": len(synthetic.images),
        "n_real_test": len(real_test.images),
        "n_real_train": len(train_images),
        "n_feature_images": {name: len(features) for name, features in chosen.items()},
    }


def _fid_or_none(features: Tensor, real: Tensor) -> float | None:
    """None where the real side has too few images for its covariance."""
    return fid(features, real) if len(real) > real.shape[1] else None


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` rows, drawn without replacement."""
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def fid(features1: Tensor, features2: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, D), with N > D on both sides.

    Source: Heusel et al. 2017. Raises ValueError for too few rows.
    """
    moments = []
    for features in (features1, features2):
        count, dimensions = features.shape
        if count <= dimensions:
            raise ValueError(f"FID needs more images than its {dimensions} feature dimensions, got {count}: draw more")
        moments.append((features.double().mean(0), torch.cov(features.double().T)))
    (mean1, covariance1), (mean2, covariance2) = moments
    return frechet_distance(mean1, covariance1, mean2, covariance2)


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: means (D,), covariances (D, D); Dowson, Landau 1982.

    |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), all by symmetric eigenvalues with those below zero set to zero:
    singular covariances, where a general matrix root turns complex, are fine.

    >>> frechet_distance(torch.zeros(1), torch.eye(1), torch.full((1,), 3.0), 4 * torch.eye(1))
    10.0
    """
    mean1, covariance1, mean2, covariance2 = (part.double().cpu() for part in (mean1, covariance1, mean2, covariance2))
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(0.0, float(distance))


def precision_recall(real: Tensor, synthetic: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall of features (N, D) and (M, D), each in [0, 1]; Kynkäänniemi et al. 2019.

    Precision: share of synthetic points within the distance of some real point to its k-th real neighbour.
    Recall: the same with the two sets swapped.
    """
    radii_real, radii_synthetic = (_neighbour_radii(points, neighbours) for points in (real, synthetic))
    inside_real = torch.zeros(len(synthetic), dtype=torch.bool)
    inside_synthetic = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(real), CHUNK):
        rows = slice(start, start + CHUNK)
        distances = torch.cdist(real[rows], synthetic)
        inside_real |= (distances <= radii_real[rows, None]).any(0)
        inside_synthetic[rows] = (distances <= radii_synthetic).any(1)
    return float(inside_real.double().mean()), float(inside_synthetic.double().mean())


def coverage(real: Tensor, synthetic: Tensor, neighbours: int = COVERAGE_NEIGHBOURS) -> float:
    """Share of real points with a synthetic one within the distance to their k-th real neighbour; Naeem et al. 2020."""
    nearest = nearest_distances(real, synthetic)
    return float((nearest <= _neighbour_radii(real, neighbours)).double().mean())


def _neighbour_radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each point to its k-th nearest other point; k shrinks to what a tiny set has."""
    rank = min(neighbours + 1, len(points))  # the point itself, at distance 0, comes first
    chunks = [torch.cdist(part, points).kthvalue(rank, dim=1).values for part in points.split(CHUNK)]
    return torch.cat(chunks)


def nearest_distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance of each of `points` (N, D) to the nearest of `others` (M, D): (N,)."""
    return torch.cat([torch.cdist(part, others).amin(1) for part in points.split(CHUNK)])


def memorisation(
    synthetic: Tensor,
    real_train: Tensor,
    real_test: Tensor,
    count: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Whether synthetic images lie closer to training images than unseen real images do, by pixel distance.

    At most `count` synthetic and `count` test images are looked at; distances are Euclidean over pixels in [0, 1].
    share_below_first_percentile: synthetic images nearer to the training set than 99% of real test images are; 0.01 if
        synthetic images are like new real ones. Smooth images are near to everything, so this alone proves nothing.
    share_closer_to_train: synthetic images whose nearest real image is a training image and not a test image; 1 for
        copies. A generator that knows no particular training image gives n_train / (n_train + all test images), which
        is share_closer_expected, however smooth its images are (after Meehan et al. 2020).
    """
    generator = torch.Generator().manual_seed(seed)
    queries = _some(synthetic, count, generator).flatten(1).to(device)
    held_out = _some(real_test, count, generator).flatten(1).to(device)
    train, test = real_train.flatten(1).to(device), real_test.flatten(1).to(device)
    to_train, reference = nearest_distances(queries, train), nearest_distances(held_out, train)
    to_test, expected = nearest_distances(queries, test), len(train) / (len(train) + len(test))
    closer = (to_train < to_test).double() + expected * (to_train == to_test).double()  # ties tell nothing
    return {
        "share_below_first_percentile": float((to_train < reference.quantile(0.01)).double().mean()),
        "share_closer_to_train": float(closer.mean()),
        "share_closer_expected": expected,
        "median_distance_synthetic": float(to_train.median()),
        "median_distance_test": float(reference.median()),
        "n_synthetic": len(queries),
        "n_test": len(held_out),
        "n_train": len(train),
    }


# --- Inception FID ----------------------------------------------------------------------------------------------------


def find_inception_weights(path: Path | None = None) -> Path | None:
    """The local weights file: `path`, else DPLDM_INCEPTION_WEIGHTS, else torch's download cache; None if there is none.

    The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth` (its release v0.2.0), the TensorFlow
    network of the original FID. Raises ValueError if a file was named but is not there.
    """
    named = path or os.environ.get(INCEPTION_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ValueError(f"no Inception weights at {named}: give the path of {_inception_file()[1]}")
        return Path(named)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _inception_file()[1]
    return cached if cached.is_file() else None


def _inception_file() -> tuple[str, str]:
    """(address, file name) that torch-fidelity uses."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3, URL_INCEPTION_V3.rsplit("/", 1)[1]


def _inception_part(
    synthetic: Tensor,
    real_test: Tensor,
    settings: EvaluationSettings,
    weights: Path | None,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """fid_inception (number or None) and fid_inception_note, the reason or what was used."""

    def none(reason: str) -> dict[str, Any]:
        return {"fid_inception": None, "fid_inception_note": reason}

    if settings.inception == "never":
        return none("not asked for")
    if weights is None and settings.inception == "if-file":
        return none(f"no local weights: name a file in {INCEPTION_VARIABLE}, or set inception to 'download'")
    generator = torch.Generator().manual_seed(seed)
    limit = settings.n_inception_images or max(len(synthetic), len(real_test))
    sides = [_some(images, limit, generator) for images in (synthetic, real_test)]
    if min(len(side) for side in sides) <= INCEPTION_DIMENSIONS:
        return none(f"needs more than {INCEPTION_DIMENSIONS} images of either side")
    try:
        weights = weights or download_inception_weights()
    except OSError as error:
        return none(f"weights could not be downloaded: {error}")
    extractor, checksum = load_inception(weights, device)
    value = fid(*(inception_features(extractor, side, device) for side in sides))
    used = f"{len(sides[0])} synthetic and {len(sides[1])} real test images, weights sha256 {checksum[:12]}"
    return {"fid_inception": value, "fid_inception_note": f"torch-fidelity inception-v3-compat, {used}"}


def load_inception(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, str]:
    """torch-fidelity's Inception v3 with the weights at `path`, and the file's SHA-256.

    torch-fidelity itself unpickles the file, which can run code in it. So the file is read as weights only and
    handed over as a copy in memory. Raises ValueError if it is not the right file.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        copy = io.BytesIO()
        torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
        copy.seek(0)
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not {_inception_file()[1]}: fetch that file of torch-fidelity v0.2.0") from error
    return extractor.to(device), hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def inception_features(extractor: nn.Module, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """float64 (N, 2048) on the CPU for images (N, 1 or 3, H, W) in [0, 1], rounded to 8 bits, grey repeated to RGB."""
    batches = []
    for batch in images.split(100):
        pixels = (batch.to(device) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        batches.append(extractor(pixels)[0].double().cpu())
    return torch.cat(batches)


def download_inception_weights(connect_seconds: float = CONNECT_SECONDS) -> Path:
    """Fetches the weights into torch's cache, checked by the hash in their name.

    Raises OSError within seconds if the server does not answer, and when a transfer stands still or is wrong.
    """
    address, name = _inception_file()
    if not _answers(address, connect_seconds):
        raise OSError(f"no answer within {connect_seconds:g} s: fetch {name} elsewhere and name it as a file")
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(4 * connect_seconds)  # torch gives none of its own
    try:
        hash_prefix = name.removesuffix(".pth").rsplit("-", 1)[1]
        torch.hub.download_url_to_file(address, str(target), hash_prefix, progress=sys.stderr.isatty())
    except RuntimeError as error:  # wrong hash
        raise OSError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return target


def _answers(address: str, seconds: float) -> bool:
    """Asked in a thread of its own, since name look-up obeys no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urlopen(address, timeout=seconds):
                answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


# --- progress ---------------------------------------------------------------------------------------------------------

_WORK = {"fidelity": 8, "memorisation": 4, "cnn": 12, "mlp": 1, "logreg": 1}  # rough seconds; classifiers: per epoch


def _work(todo: list[str], settings: EvaluationSettings) -> int:
    total = sum(_WORK[part] for part in ("fidelity", "memorisation") if part in todo)
    return total + sum(
        settings.classifier_seeds * settings.epochs(kind) * _WORK[kind] for kind in CLASSIFIERS if kind in todo
    )


class _Reporter:
    """Passes the share of work done to the caller's function, or to a bar on a terminal; `stop` tells jobs to end."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        hidden = progress is not None or not sys.stderr.isatty()
        layout = "{desc}: {percentage:3.0f}% |{bar}| {remaining} left"
        self.bar = tqdm(total=1.0, desc="evaluation", disable=hidden, bar_format=layout)

    def add(self, work: float, part: str) -> None:
        with self.lock:
            before, self.done = self.done, min(self.total, self.done + work)
            self.bar.update((self.done - before) / self.total)
            if self.progress:
                self.progress(self.done / self.total, part)

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
