"""Usefulness to learners that nobody tuned for: neighbours, trees and a support vector machine, by scikit-learn.

Their settings are fixed: nothing is chosen by a look at any image. Each learns some of the synthetic images and is
scored once on the real test set.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from dpldm.evaluation.classifiers import Labelled, share
from dpldm.evaluation.fidelity import some_rows
from dpldm.evaluation.settings import LabelledImages

LEARNED_IMAGES = 10_000  # at most, of the synthetic set
TREES = 150
COMPONENTS = 50  # principal components of the synthetic images, for boosting and the support vector machine


def build_learner(kind: str, seed: int, components: int = COMPONENTS) -> Any:
    """One of `LEARNERS`, untrained: a classifier of scikit-learn (Pedregosa et al. 2011) for rows of pixels.

    "knn": the 3 nearest neighbours in pixels (Cover and Hart 1967). "forest": 150 trees (Breiman 2001). "boosting":
    100 rounds of gradient boosting on histograms (Friedman 2001; Ke et al. 2017). "svm": Gaussian kernel, C = 5
    (Cortes and Vapnik 1995). The last two see ``components`` principal components of what they learn from.
    """
    state = seed % 2**32  # what NumPy takes
    if kind == "knn":
        return KNeighborsClassifier(3, algorithm="brute")
    if kind == "forest":
        return RandomForestClassifier(TREES, random_state=state)
    axes = PCA(components, svd_solver="covariance_eigh")
    if kind == "boosting":
        return make_pipeline(axes, HistGradientBoostingClassifier(early_stopping=False, random_state=state))
    if kind == "svm":
        return make_pipeline(axes, SVC(C=5))
    raise ValueError(f"unknown learner {kind!r}: expected knn, forest, boosting or svm")


def learner_accuracy(
    kind: str, synthetic: Labelled, real_test: LabelledImages, seed: int, most: int = LEARNED_IMAGES
) -> float:
    """Share of the real test images that a learner gets right; see `learner_rights`."""
    return share(learner_rights(kind, synthetic, real_test, seed, most))


def learner_rights(
    kind: str, synthetic: Labelled, real_test: LabelledImages, seed: int, most: int = LEARNED_IMAGES
) -> Tensor:
    """Which of the real test images a learner gets right that has seen at most ``most`` synthetic images: (N,).

    Which of those, and what else is random, comes from `seed` alone. It works in one thread, so that its score does not
    depend on the number of cores.
    """
    chosen = some_rows(torch.arange(len(synthetic.labels)), most, torch.Generator().manual_seed(seed))
    rows, labels = synthetic.images[chosen].flatten(1).numpy(), synthetic.labels[chosen].numpy()
    with threadpool_limits(1):
        learner = build_learner(kind, seed, min(COMPONENTS, *rows.shape)).fit(rows, labels)
        guesses = learner.predict(real_test.images.flatten(1).numpy())  # the only look at the test set
    return torch.from_numpy(guesses) == real_test.labels
