"""Labels as networks see them."""

from torch import Tensor, nn


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) labels → (B, num_classes) floats; the label ``num_classes`` means "no class" and gives zeros.

    >>> import torch
    >>> one_hot(torch.tensor([1, 2]), 2).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    return nn.functional.one_hot(labels, num_classes + 1)[:, :num_classes].float()
