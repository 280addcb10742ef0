"""Usefulness: classifiers trained on synthetic images and scored on real ones.

They are trained on 90% of the synthetic images, the epoch is chosen on the other 10% of the SYNTHETIC images, and each
classifier is scored once on the real test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpldm.evaluation.settings import EVALUATION, EvaluationSettings

FEATURE_DIMENSIONS = 128  # width of the layer that `fid_classifier` looks at
VALIDATION_SHARE = 0.1  # of the synthetic set, for choosing the epoch


@dataclass(frozen=True)
class Labelled:
    """Images (N, C, H, W) and their labels (N,)."""

    images: Tensor
    labels: Tensor


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
    steps = batch_count(len(indices), settings)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=fused)
    total = epochs * steps if settings.one_cycle else 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step, total))
    for epoch in range(1, epochs + 1):
        network.train()
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        for step, batch in enumerate(shuffled.split(settings.batch_size), start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(network_input(images[batch], device))
                loss = functional.cross_entropy(logits, labels[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield epoch, step == steps


def batch_count(count: int, settings: EvaluationSettings) -> int:
    """Batches of one pass over ``count`` images."""
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


def network_input(images: Tensor, device: torch.device) -> Tensor:
    """Pixels in [-1, 1], as in the reference classifiers."""
    return (images.to(device) * 2 - 1).contiguous(memory_format=torch.channels_last)


def accuracy(
    network: nn.Module, images: Tensor, labels: Tensor, indices: Tensor | None = None, bfloat16: bool = False
) -> float:
    """Share of images (or of images[indices]) whose largest output is at their label, in [0, 1]."""
    indices = torch.arange(len(images)) if indices is None else indices
    return share(guesses(network, images, indices, bfloat16) == labels[indices])


@torch.no_grad()
def guesses(network: nn.Module, images: Tensor, indices: Tensor, bfloat16: bool = False) -> Tensor:
    """Where the largest output is for each of images[indices]: (M,)."""
    network.eval()
    device, found = next(network.parameters()).device, []
    for batch in indices.split(1000):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found.append(network(network_input(images[batch], device)).argmax(1).cpu())
    return torch.cat(found)


def share(right: Tensor) -> float:
    """How many of (N,) truths are true, in [0, 1]."""
    return int(right.sum()) / len(right)


def share_by_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """The same class by class; None for a class that no label (N,) names.

    >>> share_by_class(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]), 3)
    [0.5, 1.0, None]
    """
    known = [right[labels == number] for number in range(num_classes)]
    return [share(some) if len(some) else None for some in known]


class Stopped(Exception):
    """The caller went away while classifiers were training."""
