"""Which synthetic images are released: those that a classifier trained under privacy sees as what they should be.

A generative model knows each class by its density, so its images lie on the wrong side of a border as often as its
densities cross in the wrong place. A linear classifier of oriented edges asks the private images far less and knows the
borders better. It sees them as the synthesizer would draw them, so that it judges like by like; where it also sees them
as they are, at no further cost, the way up its gradient leads from drawn images towards real ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dpldm.method.edges import BATCH, whitened, whitening
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource, clip_rows, release

STAGE = "selection"
SMALLEST_SLOPE = 1e-7  # an image whose gradient is less than that is seen as its class as clearly as can be

View = Callable[[Tensor], Tensor]
Judge = Callable[[Tensor], Tensor]
Draw = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class SelectionSettings:
    """How candidates are judged.

    candidates: most images drawn for each one released; 1 switches all of this off and costs nothing.
    share: of the budget's 1/σ², for the classifier.
    images: synthetic images that tell how its features are scaled; none of them is private any more.
    dim: most features kept. steps, learning_rate, momentum: of its gradient descent, each step over all images.
    as_they_are: whether it learns from every private image as it is, too; what the image adds is the mean of both.
    push: L2 length, in [0, 1] pixels, of the way that chosen images are moved towards being seen as their class;
        0 moves none. push_steps: in how many steps.
    """

    candidates: int = 3
    share: float = 0.25
    images: int = 20_000
    dim: int = 400
    steps: int = 60
    learning_rate: float = 40.0
    momentum: float = 0.9
    as_they_are: bool = field(default=False, metadata={"unless_default": True})
    push: float = field(default=0.0, metadata={"unless_default": True})
    push_steps: int = field(default=4, metadata={"unless_default": True})

    def __post_init__(self) -> None:
        for name in ("candidates", "images", "dim", "steps", "push_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}: raise it")
        if not (0 < self.share < 1 and self.learning_rate > 0 and 0 <= self.momentum < 1 and self.push >= 0):
            raise ValueError(
                "expected 0 < share < 1, learning_rate > 0, 0 <= momentum < 1 and push >= 0, got "
                f"{self.share}, {self.learning_rate}, {self.momentum} and {self.push}: use for example 0.25, 40, 0.9, 1"
            )


class Selector:
    """A private softmax regression on whitened oriented energies.

    The whitening comes from synthetic images, so it is free. The weights come from ``steps`` steps of full-batch noisy
    gradient descent ("selector gradients" in the ledger): one image moves the sum of gradients by at most 1, since its
    features have norm at most 1 and its residual p - y is clipped to 1; of two views of it, the mean gradient counts
    (augmentation multiplicity, De et al. 2022). The weights of the second half are averaged.
    """

    def __init__(self, num_classes: int, settings: SelectionSettings) -> None:
        self.num_classes, self.settings = num_classes, settings
        self.mean = self.axes = self.weights = torch.zeros(0)

    def mechanism(self, allowance: Allowance) -> Mechanism:
        """What `fit` will charge."""
        return allowance.mechanism("selector gradients", STAGE, sensitivity=1.0, steps=self.settings.steps)

    def fit(
        self,
        data: PrivateData,
        synthetic: Callable[[], Tensor],
        view: View | None,
        allowance: Allowance,
        noise: NoiseSource,
    ) -> Iterator[int]:
        """Yields the steps done.

        Args:
            synthetic: draws images (M, C, H, W) in [0, 1] of the synthesizer's own, if the whitening is not known yet.
            view: private images (N, C, H, W) → as the synthesizer would draw them, each by itself and by a rule that
                is private already; None: it learns from them as they are.
        """
        if not self.axes.numel():
            self.mean, self.axes = whitening(synthetic(), self.settings.dim)
        settings = self.settings
        mechanism = self.mechanism(allowance)
        images, labels = data.read(mechanism)
        # float64: rounding in a float32 sum over all images is in the order of what one image may change
        looks: list[View] = [] if view is None else [view]
        if view is None or settings.as_they_are:
            looks.append(lambda part: part)
        with torch.no_grad():
            seen = [torch.cat([self._features(look(part)) for part in images.split(BATCH)]) for look in looks]
        views = [clip_rows(features, mechanism.sensitivity).double() for features in seen]
        wanted = F.one_hot(labels, self.num_classes).double()
        weights = torch.zeros(views[0].shape[1], self.num_classes, dtype=torch.float64)
        velocity, total = torch.zeros_like(weights), torch.zeros_like(weights)
        half = settings.steps // 2
        for step in range(1, settings.steps + 1):
            total_gradient = torch.zeros_like(weights)
            for features in views:
                residuals = clip_rows((features @ weights).softmax(1) - wanted, 1.0)
                total_gradient += features.T @ residuals / len(views)
            velocity = settings.momentum * velocity + release(total_gradient, mechanism, noise) / len(data)
            weights = weights - settings.learning_rate * velocity
            if step > half:
                total += weights
            yield step
        self.weights = (total / (settings.steps - half)).float()

    def _features(self, images: Tensor) -> Tensor:
        return F.normalize(whitened(images, self.mean, self.axes))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """How strongly images (N, C, H, W) look like each class: (N, num_classes)."""
        return torch.cat([self._features(part) @ self.weights for part in images.split(BATCH)])

    def pushed(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1], moved so that each is seen more clearly as its label (N,): post-processing.

        Classifier guidance (Dhariwal and Nichol 2021) of images in place of noisy latents: steps of equal length up the
        gradient of log p(label | image), as long as there is any.
        """
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([self._pushed(part, wanted) for part, wanted in parts])

    def _pushed(self, images: Tensor, labels: Tensor) -> Tensor:
        length = self.settings.push / self.settings.push_steps
        for _ in range(self.settings.push_steps):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                unlikely = F.cross_entropy(self._features(images) @ self.weights, labels, reduction="sum")
                (slope,) = torch.autograd.grad(unlikely, images)
            norm = slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            direction = torch.where(norm > SMALLEST_SLOPE, slope / norm.clamp_min(SMALLEST_SLOPE), 0.0)
            images = (images.detach() - length * direction).clamp(0, 1)
        return images

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "axes": self.axes, "weights": self.weights}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.mean, self.axes, self.weights = state["mean"], state["axes"], state["weights"]


def drawn_again(draw: Draw, judge: Judge, labels: Tensor, candidates: int) -> Tensor:
    """For every label (B,) the first of its ``candidates`` in which the judge sees it, as (B, C, H, W);
    where it sees it in none, the most probable.

    Args:
        draw: (rows (M,) of ``labels``, round 0, 1, …) → one image for each of them, (M, C, H, W).
        judge: images → how strongly they look like each class, (M, classes).

    Only what was refused is drawn again.
    """
    everyone = torch.arange(len(labels))
    kept = draw(everyone, 0)
    seen, probability = _seen(judge(kept), labels)
    for turn in range(1, candidates):
        refused = everyone[~seen]
        if not len(refused):
            break
        images = draw(refused, turn)
        now, likely = _seen(judge(images), labels[refused])
        better = now | (likely > probability[refused])
        rows = refused[better]
        kept[rows], seen[rows], probability[rows] = images[better], now[better], likely[better]
    return kept


def _seen(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each label (B,) is the strongest of its logits (B, classes), and its probability."""
    return logits.argmax(1) == labels, logits.softmax(1).gather(1, labels[:, None])[:, 0]
