"""Two-sample tests: can a classifier tell synthetic images from real ones that nobody learned from?

A judge learns the difference on some images of both sides and is asked about others (Lopez-Paz and Oquab 2017).
Its score is the area under the ROC curve (AUC): the probability that it finds a synthetic image more synthetic than a
real one; 0.5 where it sees no difference, 1 where it always does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import bootstrap, rankdata
from threadpoolctl import threadpool_limits
from torch import Tensor

from dpldm.evaluation.classifiers import network_input, train_classifier
from dpldm.evaluation.learners import build_learner
from dpldm.evaluation.settings import EVALUATION, EvaluationSettings

LEARNED_IMAGES = 1_000  # at most, of each side, and at most half of what there is
ASKED_IMAGES = 4_000  # at most, of each side: asking costs little, and the score scatters with one over the root of it
GREY_LEVELS = 8
RESAMPLES = 1_000
CONFIDENCE = 0.95

VIEWS = ("", "_greys", "_real")  # what is added to the name of the judge


def two_sample(
    judge: str,
    view: str,
    synthetic: Tensor,
    real_test: Tensor,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """How well one of `JUDGES` tells images apart, in one of VIEWS: `auc` with `low` and `high`, and `n` of each side.

    The view "_greys" rounds all images to 8 grey levels, so that what is seen is not how finely greys are graded or
    how clean the background is. "_real" is the yardstick: one half of the test images against the other, drawn at
    random, so that there is no difference and whatever is not 0.5 is chance. low, high: 95 % interval by the bootstrap
    (see `auc_interval`), which one seed in twenty misses.
    on_batch: called after each batch that the CNN learns; what it raises ends the work.
    """
    first, second = halves(real_test, seed) if view == "_real" else (synthetic, real_test)
    images, scores = held_out_scores(judge, first, second, settings, device, seed, view == "_greys", on_batch)
    n = len(images)
    low, high = auc_interval(scores[:n], scores[n:], seed)
    return {"auc": auc(scores[:n], scores[n:]), "low": low, "high": high, "n": n}


def halves(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of images (N, ...) that share none; of an odd number one is left out."""
    order, half = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)), len(images) // 2
    return images[order[:half]], images[order[half : 2 * half]]


def held_out_scores(
    judge: str,
    first: Tensor,
    second: Tensor,
    settings: EvaluationSettings,
    device: torch.device | str,
    seed: int,
    coarse: bool = False,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[Tensor, np.ndarray]:
    """Which of `first` were held out (n,), and how sure the judge is that held-out images are of `first`: (2n,).

    The scores of the n images of `first` come before those of n of `second`. first, second: (N, C, H, W) in [0, 1]; as
    many of each are drawn as both have, at most LEARNED_IMAGES to learn from and ASKED_IMAGES to ask about.
    """
    generator = torch.Generator().manual_seed(seed)
    count = min(len(first), len(second))
    learned = min(count // 2, LEARNED_IMAGES)
    n = min(count - learned, ASKED_IMAGES)
    drawn = [torch.randperm(len(side), generator=generator) for side in (first, second)]
    seen, asked = (
        torch.cat([first[drawn[0][part]], second[drawn[1][part]]])
        for part in (slice(learned), slice(learned, learned + n))
    )
    if coarse:
        seen, asked = in_grey_levels(seen), in_grey_levels(asked)
    labels = (torch.arange(2 * learned) < learned).long()
    if judge == "forest":
        scores = _forest_scores(seen, labels, asked, seed)
    else:
        scores = _cnn_scores(seen, labels, asked, settings, device, seed, on_batch)
    return drawn[0][learned : learned + n], scores


def giveaways(synthetic: Tensor, real_test: Tensor, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Places of the held-out synthetic images that the forest is surest, and least sure, are synthetic: (count,) each.

    Of the seed and images of an evaluation it is that evaluation's forest.
    """
    places, scores = held_out_scores("forest", synthetic, real_test, EVALUATION["quick"], "cpu", seed)
    order = torch.from_numpy(np.argsort(-scores[: len(places)], kind="stable"))
    return places[order[:count]], places[order.flip(0)[:count]]


def in_grey_levels(images: Tensor, levels: int = GREY_LEVELS) -> Tensor:
    """Images in [0, 1] rounded to so many values.

    >>> in_grey_levels(torch.tensor([0.0, 0.2, 0.3, 1.0]), 3)
    tensor([0.0000, 0.0000, 0.5000, 1.0000])
    """
    return (images * (levels - 1)).round() / (levels - 1)


def _forest_scores(seen: Tensor, labels: Tensor, asked: Tensor, seed: int) -> np.ndarray:
    with threadpool_limits(1):
        forest = build_learner("forest", seed).fit(seen.flatten(1).numpy(), labels.numpy())
        return forest.predict_proba(asked.flatten(1).numpy())[:, 1]


@torch.no_grad()
def _cnn_scores(
    seen: Tensor,
    labels: Tensor,
    asked: Tensor,
    settings: EvaluationSettings,
    device: torch.device | str,
    seed: int,
    on_batch: Callable[[], None],
) -> np.ndarray:
    with torch.enable_grad():
        network = train_classifier("cnn", seen, labels, 2, settings, device, seed, on_batch).network.eval()
    logits = torch.cat([network(network_input(part, torch.device(device))).cpu() for part in asked.split(1000)])
    return (logits[:, 1] - logits[:, 0]).double().numpy()


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs where the positive score is the larger one; a tie counts half (Mann and Whitney 1947).

    >>> auc(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    0.875
    """
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(positive: np.ndarray, negative: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the AUC: percentiles of 1,000 bootstrap samples of the scores (Efron 1979), drawn from `seed`.

    It holds for this judge as it was trained. Where no pair is in the wrong order it is the point 1.
    """
    interval = bootstrap(
        (positive, negative),
        auc,
        n_resamples=RESAMPLES,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
