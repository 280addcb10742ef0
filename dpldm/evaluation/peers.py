"""The protocol that peers report: the best of a ResNet, a wide ResNet and a ResNeXt, as DPImageBench trains them.

Source of the settings: Gong et al. 2025 (DPImageBench), its published code for grey images of 28 pixels, with the
epoch chosen on synthetic images (its mode `syn`). Everything random comes from one seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torchvision.models.resnet import BasicBlock, Bottleneck

from dpldm.evaluation.classifiers import Labelled, accuracy, network_input
from dpldm.evaluation.settings import LabelledImages

PROTOCOL = "dpimagebench"
KINDS = ("resnet", "wrn", "resnext")
TRIED_IMAGES = 8  # in the one step that is timed


@dataclass(frozen=True)
class PeersSettings:
    """The published settings are the defaults.

    kinds: some of KINDS. epochs: passes over the synthetic images that are learned from. batch, learning_rate: of Adam;
    the rate is multiplied by `step_factor` after every `step_epochs` epochs. ema: decay of the averaged weights, which
    alone are scored; at step t it is at most (1 + t)/(10 + t). dropout: within the blocks of the wide ResNet.
    held_out: share of the synthetic images that choose the epoch, 5,000 of 60,000. depths: layers, 6n + 2, 6n + 4 and
    9n + 2; wrn_width: factor on 16, 32 and 64 channels; groups, group_width: of the ResNeXt.
    """

    kinds: tuple[str, ...] = KINDS
    epochs: int = 50
    batch: int = 256
    learning_rate: float = 0.01
    step_epochs: int = 20
    step_factor: float = 0.2
    ema: float = 0.9999
    dropout: float = 0.3
    held_out: float = 1 / 12
    resnet_depth: int = 110
    wrn_depth: int = 40
    wrn_width: int = 4
    resnext_depth: int = 29
    groups: int = 8
    group_width: int = 64


FULL = PeersSettings()
REDUCED = PeersSettings(kinds=("wrn",), epochs=5, step_epochs=2, wrn_depth=16, wrn_width=1)  # for two cores


class WideBlock(nn.Module):
    """Two convolutions after their activations, with dropout between them (Zagoruyko and Komodakis 2016)."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.rest = nn.Sequential(
            _convolution(before, after, stride),
            *(nn.BatchNorm2d(after), nn.ReLU(), nn.Dropout(dropout), _convolution(after, after)),
        )
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        active = self.first(values)
        return (values if self.shortcut is None else self.shortcut(active)) + self.rest(active)


def build_peer(kind: str, channels: int, num_classes: int, settings: PeersSettings = FULL) -> nn.Sequential:
    """One of KINDS, untrained, for images (N, C, H, W) in [-1, 1]; weights are drawn from torch's global generator.

    "resnet": ResNet-110 of basic blocks with 16, 32 and 64 channels (He et al. 2016). "wrn": WRN-40-4 (Zagoruyko and
    Komodakis 2016). "resnext": ResNeXt-29, 8 x 64d (Xie et al. 2017). The blocks of
    the first and the last are torchvision's.
    """
    widths, active = [16, 32, 64], True
    if kind == "resnet":
        depth, start = (settings.resnet_depth - 2) // 6, 16

        def block(before: int, width: int, stride: int) -> nn.Module:
            return BasicBlock(before, width, stride, _projection(before, width, stride))
    elif kind == "wrn":
        depth, start, active = (settings.wrn_depth - 4) // 6, 16, False
        widths = [settings.wrn_width * width for width in widths]

        def block(before: int, width: int, stride: int) -> nn.Module:
            return WideBlock(before, width, stride, settings.dropout)
    elif kind == "resnext":
        depth, start, widths = (settings.resnext_depth - 2) // 9, 64, [256, 512, 1024]

        def block(before: int, width: int, stride: int) -> nn.Module:
            short = _projection(before, width, stride)
            return Bottleneck(before, width // 4, stride, short, settings.groups, settings.group_width)
    else:
        raise ValueError(f"unknown classifier {kind!r}: expected {', '.join(KINDS)}")
    layers: list[nn.Module] = [_convolution(channels, start)]
    layers += [nn.BatchNorm2d(start), nn.ReLU()] if active else []
    before = start
    for stage, width in enumerate(widths):
        for number in range(depth):
            layers.append(block(before, width, 2 if stage and not number else 1))
            before = width
    layers += [] if active else [nn.BatchNorm2d(before), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


def _projection(before: int, after: int, stride: int) -> nn.Module | None:
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


@dataclass(frozen=True)
class Chosen:
    """A peer at its chosen epoch (1, 2, ...) with its share of right answers on the held-out synthetic images."""

    network: nn.Module
    epoch: int
    validation_accuracy: float


def train_peer(
    kind: str,
    synthetic: Labelled,
    num_classes: int,
    settings: PeersSettings,
    device: torch.device,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Chosen:
    """Train one of KINDS on synthetic images and keep the averaged weights of the epoch that is best on those held out.

    No real image can influence the choice: none is an argument. Of equal epochs the later counts, as published.
    """
    learned, held_out = split(len(synthetic.labels), settings, seed)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        network = build_peer(kind, synthetic.images.shape[1], num_classes, settings)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        averaged = AveragedModel(network, avg_fn=lambda old, new, t: old + _weight(settings.ema, t) * (new - old))
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, settings.step_epochs, settings.step_factor)
        best = Chosen(averaged, 0, -1.0)
        state: dict[str, Tensor] = {}
        for epoch in range(1, settings.epochs + 1):
            network.train()
            for batch in learned[torch.randperm(len(learned))].split(settings.batch):
                _step(network, optimizer, synthetic.images[batch], synthetic.labels[batch], device)
                averaged.update_parameters(network)
                on_batch()
            schedule.step()
            reached = accuracy(averaged, synthetic.images, synthetic.labels, held_out)
            if reached >= best.validation_accuracy:
                best = Chosen(averaged, epoch, reached)
                state = {name: value.detach().cpu().clone() for name, value in averaged.state_dict().items()}
    averaged.load_state_dict(state)
    return best


def split(count: int, settings: PeersSettings, seed: int) -> tuple[Tensor, Tensor]:
    """Which of `count` synthetic images are learned from, and which choose the epoch."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(settings.held_out * count))
    return order[held_out:], order[:held_out]


def _weight(ema: float, count: Tensor | int) -> float:
    """Of the new weights in the average, after `count` steps."""
    return 1 - min(ema, (1 + int(count)) / (10 + int(count)))


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, device: torch.device
) -> None:
    loss = functional.cross_entropy(network(network_input(images, device)), labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def peers_scores(
    synthetic: Labelled,
    real_test: LabelledImages,
    settings: PeersSettings,
    device: torch.device,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Accuracy on real test images of each of the settings' classifiers, each scored once at its chosen epoch.

    Returns `accuracy` (kind -> share), `best` and `mean` of them, `selection` (kind -> epoch and accuracy on held-out
    synthetic images), `n_learned`, `n_held_out`, `reduced` (whether the settings are others than the published) and
    `settings`. progress: called with the share of the work that is done.
    """
    learned, held_out = split(len(synthetic.labels), settings, seed)
    steps = len(settings.kinds) * settings.epochs * -(-len(learned) // settings.batch)
    done = 0

    def on_batch() -> None:
        nonlocal done
        done += 1
        progress(done / steps)

    reached, selection = dict[str, float](), dict[str, Any]()
    for kind in settings.kinds:
        chosen = train_peer(kind, synthetic, real_test.num_classes, settings, device, seed, on_batch)
        reached[kind] = accuracy(chosen.network, real_test.images, real_test.labels)  # the only look at the test set
        selection[kind] = {"epoch": chosen.epoch, "synthetic_validation_accuracy": chosen.validation_accuracy}
    return {
        "accuracy": reached,
        "best": max(reached.values()),
        "mean": sum(reached.values()) / len(reached),
        "selection": selection,
        "n_learned": len(learned),
        "n_held_out": len(held_out),
        "reduced": settings != FULL,
        "settings": asdict(settings) | {"kinds": list(settings.kinds)},
    }


def expected_hours(
    shape: tuple[int, ...], num_classes: int, count: int, settings: PeersSettings, device: torch.device
) -> float:
    """How long `peers_scores` takes for so many synthetic images of shape (C, H, W), by a step of each classifier."""
    seconds = 0.0
    images, labels = torch.zeros(TRIED_IMAGES, *shape), torch.arange(TRIED_IMAGES) % num_classes
    with torch.random.fork_rng(devices=[]):
        for kind in settings.kinds:
            network = build_peer(kind, shape[0], num_classes, settings).to(device)
            optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
            for _ in range(2):  # the first is slower
                start = time.perf_counter()
                _step(network, optimizer, images, labels, device)
            seconds += time.perf_counter() - start
    return seconds / TRIED_IMAGES * count * settings.epochs / 3600
