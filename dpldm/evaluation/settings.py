"""How much is measured: the settings of the evaluation, and the names of its classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

CLASSIFIERS = ("cnn", "mlp", "logreg")
LEARNERS = ("forest", "boosting", "svm", "knn")  # that nobody tuned for, beside those
JUDGES = ("forest", "cnn")  # that tell synthetic from real images
INCEPTION_MODES = ("never", "if-file", "download")


class LabelledImages(Protocol):
    """What this module needs of a real data set: `dpldm.data.images.ImageData` has it."""

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
