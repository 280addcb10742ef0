"""Images that only the direction of their edges tells apart."""

import torch


def stripes(n, side=12, seed=0):
    """Class 0: lines from left to right; class 1: from top to bottom; random places and strengths."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 1, side, side)
    places = torch.randint(2, side - 2, (n,), generator=random)
    for i, (label, place) in enumerate(zip(labels.tolist(), places.tolist(), strict=True)):
        (images[i, 0, place] if label == 0 else images[i, 0, :, place]).fill_(1.0)
    return (images + 0.1 * torch.rand(images.shape, generator=random)).clamp(0, 1), labels
