"""The guard of the private images: whoever reads them names the mechanism that pays for it."""

from typing import NoReturn

import torch
from torch import Tensor

from dpldm.privacy.accounting import Ledger
from dpldm.privacy.checks import PrivacyError, is_whole, require
from dpldm.privacy.mechanisms import Mechanism

# ---------------------------------------------------------------------------------------------------------------------
# The guard


class PrivateData:
    """Private images and labels behind a guard: the only way to them is `read`, which charges the ledger first.

    Public: ``len()``, `image_shape`, `num_classes`. Under add-or-remove-one the number of images is not protected by
    the guarantee; it is taken as public, as is usual, and may appear only as a constant (e.g. the expected batch size).
    No attribute, no text form and no copy shows anything else. This guards against forgetting, not against malice:
    a Python program that wants to look inside can.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,) in 0 .. num_classes - 1.
        num_classes: public number of classes, >= 1.
        ledger: where reads are charged.

    Raises:
        PrivacyError: wrong type, shape or range. This check is the data owner's own and is not part of a release.
    """

    __slots__ = ("_len", "_reader", "_reads", "image_shape", "ledger", "num_classes")

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int, ledger: Ledger) -> None:
        _check_images(images)
        _check_labels(labels, len(images), num_classes)
        reads: list[str] = []

        def reader(mechanism: Mechanism) -> tuple[Tensor, Tensor]:
            ledger.add(mechanism)
            reads.append(mechanism.name)
            return images, labels

        self._reader = reader
        self._reads = reads
        self._len = len(images)
        self.ledger = ledger
        self.image_shape = tuple(images.shape[1:])
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self._len

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the mechanisms that read the data, in order."""
        return tuple(self._reads)

    def read(self, mechanism: Mechanism) -> tuple[Tensor, Tensor]:
        """Charge the mechanism, then hand out (images, labels); treat them as read-only.

        One call serves all ``steps`` of the mechanism. Every call is charged, so call it once per mechanism. A run that
        is deliberately not private reads with a noise multiplier of 0, after which ε is infinite.
        """
        return self._reader(mechanism)

    def __repr__(self) -> str:
        return f"PrivateData({self._len} images of shape {self.image_shape}, {self.num_classes} classes)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("private data can't be pickled or copied: pass the guard on, or build it anew")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise PrivacyError(
            f"expected images as float32 (N, C, H, W) with N > 0, got {images.dtype} {tuple(images.shape)}"
        )
    lowest, highest = (bound.item() for bound in images.aminmax())
    if not (lowest >= 0 and highest <= 1):  # also catches NaN
        raise PrivacyError(f"expected pixels from 0 to 1, got {lowest:g} to {highest:g}; rescale or repair the images")


def _check_labels(labels: Tensor, n: int, num_classes: int) -> None:
    require(is_whole(num_classes) and num_classes >= 1, "at least one class", num_classes)
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise PrivacyError(f"expected labels as int64 ({n},), one per image, got {labels.dtype} {tuple(labels.shape)}")
    lowest, highest = (int(bound) for bound in labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise PrivacyError(f"expected labels from 0 to {num_classes - 1}, got {lowest} to {highest}")
