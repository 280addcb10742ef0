"""Fidelity: Fréchet distance (FID), precision and recall, coverage, and a check for memorised training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpldm.evaluation.classifiers import FEATURE_DIMENSIONS, Labelled
from dpldm.evaluation.features import feature_network_for
from dpldm.evaluation.settings import EvaluationSettings, LabelledImages

NEIGHBOURS = 3  # k of improved precision and recall (Kynkäänniemi et al. 2019)
COVERAGE_NEIGHBOURS = 5  # k of coverage (Naeem et al. 2020)
CHUNK = 500  # rows of a distance matrix held at once: 500 x 60,000 float32 are 120 MB


def fidelity(
    synthetic: Labelled,
    real_train: LabelledImages,
    real_test: LabelledImages,
    settings: EvaluationSettings,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Fréchet distances, precision, recall and coverage by the features of a classifier of real images."""
    network, description = feature_network_for(real_train, settings, device, seed)
    generator = torch.Generator().manual_seed(seed)
    train_images = some_rows(real_train.images, settings.n_train_images, generator)
    of_synthetic, of_test, of_train = (
        network.features(images) for images in (synthetic.images, real_test.images, train_images)
    )
    some = {"synthetic": of_synthetic, "test": of_test}
    chosen = {name: some_rows(features, settings.n_feature_images, generator) for name, features in some.items()}
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


def some_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
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
    share_copied: synthetic images that are less than half as far from a training image as from any test image; 0 of new
        ones, since smooth images are as near to the one set as to the other (after Carlini et al. 2023).
    share_below_first_percentile: synthetic images nearer to the training set than 99% of real test images are; 0.01 if
        synthetic images are like new real ones. Smooth images are near to everything, so this alone proves nothing.
    share_closer_to_train: synthetic images whose nearest real image is a training image and not a test image; 1 for
        copies. A generator that knows no particular training image gives n_train / (n_train + all test images), which
        is share_closer_expected, however smooth its images are (after Meehan et al. 2020).
    """
    generator = torch.Generator().manual_seed(seed)
    queries = some_rows(synthetic, count, generator).flatten(1).to(device)
    held_out = some_rows(real_test, count, generator).flatten(1).to(device)
    train, test = real_train.flatten(1).to(device), real_test.flatten(1).to(device)
    to_train, reference = nearest_distances(queries, train), nearest_distances(held_out, train)
    to_test, expected = nearest_distances(queries, test), len(train) / (len(train) + len(test))
    closer = (to_train < to_test).double() + expected * (to_train == to_test).double()  # ties tell nothing
    return {
        "share_copied": float((2 * to_train < to_test).double().mean()),
        "share_below_first_percentile": float((to_train < reference.quantile(0.01)).double().mean()),
        "share_closer_to_train": float(closer.mean()),
        "share_closer_expected": expected,
        "median_distance_synthetic": float(to_train.median()),
        "median_distance_test": float(reference.median()),
        "n_synthetic": len(queries),
        "n_test": len(held_out),
        "n_train": len(train),
    }
