"""DP-Sinkhorn: a generator that follows the noisy gradient of an optimal transport cost (Cao et al., 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpldm.method.finishing import Finishable
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.privacy.noise import NoiseSource, clip_rows, release
from dpldm.rivals.sanitised import (
    STAGE,
    GeneratorSettings,
    GeneratorTrainer,
    ImageGradientMethod,
    Shape,
    require_positive,
)


@dataclass(frozen=True)
class SinkhornSettings(Finishable):
    """DP-Sinkhorn. The cost of a pair is, per pixel, squared difference plus ``l1_weight`` times absolute difference,
    plus ``label_weight`` where the labels differ.

    batch: expected size of a Poisson batch of private images. regularisation: λ of entropic transport, in the unit of
    the cost. iterations: of Sinkhorn's algorithm. fresh_share: share of the generated images, in [0, 1], that the term
    against the generator itself compares with fresh ones (Cao et al.'s p; 0 leaves each image its own neighbour).
    clip_norm: C, of the gradient of all generated images together, as if each had mass 1 and pixels were summed.
    """

    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    batch: int = 50
    l1_weight: float = 1.0
    label_weight: float = 1.0
    regularisation: float = 0.005
    iterations: int = 10
    fresh_share: float = 0.2
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "batch", "regularisation", "iterations", "clip_norm")
        if not (self.l1_weight >= 0 and self.label_weight >= 0 and 0 <= self.fresh_share <= 1):
            raise ValueError(
                "expected weights >= 0 and fresh_share from 0 to 1, got "
                f"l1_weight={self.l1_weight}, label_weight={self.label_weight} and fresh_share={self.fresh_share}"
            )


@torch.no_grad()
def transport_plan(cost: Tensor, regularisation: float, iterations: int, masses: Tensor | None = None) -> Tensor:
    """Entropic optimal transport from n equal masses to m masses: the plan P (n, m) ≥ 0, of total 1.

    Minimises ⟨P, cost⟩ + λ KL(P ‖ product of the masses) over plans with rows of 1/n and columns of ``masses``, by
    Sinkhorn's algorithm in logarithms (Cuturi 2013). Rows are exact after any number of iterations, columns in the
    limit.

    Args:
        cost: (n, m), n and m >= 1. regularisation: λ > 0, in the unit of ``cost``. iterations: >= 1.
        masses: (m,), > 0, of total 1; None for equal ones.
    """
    scores = -cost / regularisation
    for _ in range(iterations):
        scores = scores.log_softmax(0)
        if masses is not None:
            scores = scores + masses.log()
        scores = scores.log_softmax(1)
    return scores.exp() / len(cost)


def transport_cost(cost: Tensor, regularisation: float, iterations: int, masses: Tensor | None = None) -> Tensor:
    """W_λ = min ⟨P, cost⟩ + λ KL(P ‖ product of the masses), a number ≥ 0 for costs ≥ 0, with its gradient.

    By the envelope theorem its derivative with respect to ``cost`` is the optimal plan itself, so nothing is
    differentiated through the iterations (Feydy et al. 2019). Arguments as of `transport_plan`.
    """
    plan = transport_plan(cost, regularisation, iterations, masses)
    product = plan.new_full((plan.shape[1],), 1 / plan.shape[1]) if masses is None else masses
    entropy = torch.special.xlogy(plan, plan * len(plan) / product).sum()
    return (plan * cost).sum() + regularisation * entropy


def class_masses(labels: Tensor, generated_labels: Tensor) -> Tensor:
    """Masses (M,) of private images that give each class the mass it has among the generated ones (B,).

    Every class of ``labels`` has to be among ``generated_labels``; the total is 1.
    """
    size = int(torch.cat([labels, generated_labels]).max()) + 1
    counts, wanted = (torch.bincount(each, minlength=size) for each in (labels, generated_labels))
    masses = (wanted[labels] / counts[labels]).float()
    return masses / masses.sum()


def pair_costs(
    images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, settings: SinkhornSettings
) -> Tensor:
    """Costs (n, m) of all pairs of (n, C, H, W) and (m, C, H, W) images with labels: see `SinkhornSettings`."""
    left, right = images.flatten(1), others.flatten(1)
    pixels = left.square().sum(1, keepdim=True) + right.square().sum(1) - 2 * left @ right.T
    if settings.l1_weight:
        pixels = pixels + settings.l1_weight * torch.cdist(left, right, p=1)
    return pixels / left.shape[1] + settings.label_weight * (labels[:, None] != other_labels)


class Sinkhorn(ImageGradientMethod):
    """DP-Sinkhorn (Cao, Bie, Vahdat, Fidler, Kreis 2021): no discriminator, the loss is a transport cost.

    Each step draws a fixed number of images X with balanced public labels and a Poisson sample Y of private images,
    takes the gradient of the semi-debiased divergence W(X, Y) - W(X, X') with respect to X, clips it as *one* vector to
    length C, adds noise, and hands it to the generator. X' is X with the first ``fresh_share`` drawn anew, and held
    fixed: the cost is symmetric, so that half of the gradient of 2 W(X, Y) - W(X, X') is the same in expectation.

    Guarantee (add or remove one image): a step is a Poisson-subsampled Gaussian mechanism with sensitivity 2C. Given X
    and the earlier releases, let g(Y) be the clipped gradient, 0 for an empty Y. Both g(Y) and g(Y + image) lie in a
    ball of radius C, so they are at most 2C apart; no less can be promised, since one image more changes the whole
    plan. The image takes part with probability q = batch/N, independently of everything: with it, the release is drawn
    from (1 - q) N(g(Y), s²) + q N(g(Y + image), s²), without it from N(g(Y), s²), s = noise multiplier · 2C, which is
    what `dpldm.privacy.mechanisms.Mechanism` charges. Labels of private images enter g only.

    The private sample's classes are weighted to the generated labels' shares, which are public: else a class that the
    sample has too much of is transported to images of another class. It changes g inside the ball, not the ball.

    Where this differs from the published code (nv-tlabs/DP-Sinkhorn_code): the accountant counts the steps that are
    run; classes are weighted; the generator is dense; the number of generated images is a public constant, there it is
    the size of the private sample, which the analysis does not cover. Clipping the batch as a whole and the sensitivity
    2C are the same. Clipping each image's gradient to C would give 2C√B for B of them, and as much noise for the same
    length of the whole.
    """

    settings: SinkhornSettings
    method = "dp-sinkhorn"

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: SinkhornSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shape, num_classes, settings.generator, spec, seed, device)
        self.settings = settings

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        super().check(n)
        if n < self.settings.batch:
            expected = f"at least as many images as the batch of {self.settings.batch}"
            raise ValueError(f"expected {expected}, got {n}: lower the batch")

    def template(self, n: int) -> Mechanism:
        """The whole fit to ``n`` images as a mechanism, all but its noise multiplier."""
        rate, sensitivity = min(1.0, self.settings.batch / n), 2 * self.settings.clip_norm
        return Mechanism("transport gradients", STAGE, 1.0, rate, self.generator_settings.steps, sensitivity)

    def clipped_gradient(
        self, generated: Tensor, labels: Tensor, fresh: Tensor, private: Tensor, private_labels: Tensor
    ) -> Tensor:
        """The gradient before the noise: (B, C, H, W), of length at most C over all its entries together.

        Args:
            generated: X, (B, C, H, W); labels: its (B,) labels. fresh: (F, C, H, W), in the place of the first F of X.
            private, private_labels: Y, (M, C, H, W) and (M,), M >= 0.
        """
        wanted = torch.isin(private_labels, labels)
        if not wanted.any():
            return torch.zeros_like(generated)
        private, private_labels = private[wanted], private_labels[wanted]
        settings, images = self.settings, generated.detach().requires_grad_()
        others = torch.cat([fresh, generated[len(fresh) :]]).detach()
        costs = (
            pair_costs(images, labels, private, private_labels, settings),
            pair_costs(images, labels, others, labels, settings),
        )
        masses = class_masses(private_labels, labels).to(images.dtype), None
        to_private, to_others = (
            transport_cost(cost, settings.regularisation, settings.iterations, mass)
            for cost, mass in zip(costs, masses, strict=True)
        )
        (gradient,) = torch.autograd.grad(to_private - to_others, images)
        whole = gradient.reshape(1, -1) * gradient.numel()
        return clip_rows(whole, settings.clip_norm).view_as(gradient)

    def fit_gradients(
        self, images: Tensor, labels: Tensor, mechanism: Mechanism, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]:
        """Train the generator on private images with ``mechanism``, already charged; yields the steps done."""
        assert self.network is not None
        trainer = GeneratorTrainer(self.network, self.generator_settings, mechanism.steps)
        count = self.generator_settings.images
        anew = round(self.settings.fresh_share * count)
        for step in range(1, mechanism.steps + 1):
            classes = self.some_labels(count, random)
            generated = self.draw(classes, random)
            with torch.no_grad():
                fresh = self.draw(classes[:anew], random)
            chosen = noise.poisson_mask(len(images), mechanism.sample_rate).nonzero().flatten().to(self.device)
            gradient = self.clipped_gradient(generated, classes, fresh, images[chosen], labels[chosen])
            trainer.step(generated, release(gradient, mechanism, noise))
            yield step
        trainer.average.apply()
