"""Real images, as a yardstick: no method, and not private."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.data.images import in_bytes
from dpldm.method.compressor import Shape
from dpldm.method.settings import SamplingSettings
from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import PrivacySpec
from dpldm.rivals.base import BATCH, Baseline, whole


@dataclass(frozen=True)
class RealImagesSettings:
    """There is nothing to set."""


class RealImages(Baseline):
    """The yardstick: "samples" are the training images themselves. No privacy, and no use but to compare scores.

    Raises:
        PrivacyError: a budget is given.
    """

    stages = ("copy",)

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: RealImagesSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if spec is not None:
            raise PrivacyError("real images can't be private: expected no budget, got one; leave out ε and noise")
        super().__init__(shape, num_classes, spec, seed, device)
        self.settings = settings
        self.images = torch.zeros(0, *shape, dtype=torch.uint8)
        self.labels = torch.zeros(0, dtype=torch.int64)

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Keep the images, in 8 bits; read without noise, so the ledger's ε is infinite."""
        images, labels = data.read(whole(None).mechanism("real images", stage, sensitivity=1.0))
        missing = set(range(self.num_classes)) - set(labels.unique().tolist())
        if missing:
            raise ValueError(f"expected images of every class, got none of class {min(missing)}: add some")
        self.images, self.labels = in_bytes(images), labels
        yield 1

    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Real images for ``labels`` (N,), in batches (B, C, H, W) in [0, 1]: each of a class once, in random order,
        before any is repeated."""
        random = torch.Generator().manual_seed(seed)
        chosen = torch.empty_like(labels)
        for c in labels.unique().tolist():
            own, wanted = (self.labels == c).nonzero()[:, 0], int((labels == c).sum())
            rounds = [own[torch.randperm(len(own), generator=random)] for _ in range(math.ceil(wanted / len(own)))]
            chosen[labels == c] = torch.cat(rounds)[:wanted]
        for part in chosen.split(BATCH):
            yield self.images[part].float() / 255

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors: the real images and labels."""
        return {"images": self.images, "labels": self.labels}

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back."""
        self.images, self.labels = state["images"], state["labels"]
