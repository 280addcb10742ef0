"""Oriented edge energies: fixed features of images, the same for every data set, so no private image decides them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 7  # cells per axis in which the energies are averaged
ORIENTATIONS = 8
STRIDES = (2, 1, 1)  # of the filters, at three scales: the image, half of its size, a quarter
BATCH = 250  # images at a time, so that what is computed of them stays in a cache
SMALLEST = 1e-6  # added to a squared energy, whose root has no gradient at 0
LEAST = GRID**2 * (1 + ORIENTATIONS * len(STRIDES))  # features of an image of one channel


def _oriented_filters(size: int = 5, wavelength: float = 3.0, spread: float = 1.2) -> Tensor:
    """Even Gabor filters in `ORIENTATIONS` directions, then their odd partners: (2 · ORIENTATIONS, 1, size, size)."""
    axis = torch.arange(size) - size // 2.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    envelope = torch.exp(-(x.square() + y.square()) / (2 * spread**2))
    filters = []
    for turn in range(ORIENTATIONS):
        angle = math.pi * turn / ORIENTATIONS
        phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
        even, odd = phase.cos() * envelope, phase.sin() * envelope
        even = even - envelope * even.sum() / envelope.sum()  # an even ground has no energy
        norm = (even.square().sum() + odd.square().sum()).sqrt()
        filters += [even / norm, odd / norm]
    return torch.stack(filters[::2] + filters[1::2])[:, None]


FILTERS = _oriented_filters()


def oriented_energies(images: Tensor) -> Tensor:
    """Fixed features of images (N, C, H, W) in [0, 1]: (N, 49 · (C + 24)), each row of L2 norm at most 1.

    The strength of edges in eight directions, at three scales, and the brightness of every channel, averaged in a grid
    of 7 x 7 cells; each group has length 1. No data decides them: a first layer of a scattering transform (Bruna and
    Mallat 2013), which Tramèr and Boneh (2021) found to serve private classifiers better than learned features.
    """
    return torch.cat([_energies(part) for part in images.split(BATCH)])


def _energies(images: Tensor) -> Tensor:
    groups, grey = [F.adaptive_avg_pool2d(images, GRID)], images.mean(1, keepdim=True)
    for stride in STRIDES:
        groups.append(F.adaptive_avg_pool2d(_strengths(grey, stride), GRID))
        grey = F.avg_pool2d(grey, 2, ceil_mode=True)
    rows = [group.flatten(1) for group in groups]
    return torch.cat([row / (row.norm(dim=1, keepdim=True) + 0.01) for row in rows], 1) / math.sqrt(len(rows))


def _strengths(grey: Tensor, stride: int) -> Tensor:
    """Local energies of images (N, 1, H, W): (N, ORIENTATIONS, H', W'). As one product of matrices, since on a CPU the
    gradient of a convolution of one channel is slow."""
    size, sides = FILTERS.shape[-1], [-(-side // stride) for side in grey.shape[2:]]
    waves = FILTERS.to(grey.device).flatten(1) @ F.unfold(grey, size, padding=size // 2, stride=stride)
    even, odd = waves.split(ORIENTATIONS, dim=1)
    return (even.square() + odd.square() + SMALLEST).sqrt().unflatten(2, sides)


@torch.no_grad()
def whitening(images: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The mean (D,) of the energies of images, and their ``dim`` strongest principal axes (D, dim), or all if there are
    fewer, each divided by its standard deviation. Only for images that are private no more."""
    features = oriented_energies(images)
    mean = features.mean(0)
    centred = (features - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(dim, len(values))
    return mean, (vectors[:, -kept:] / values[-kept:].clamp_min(1e-6).sqrt()).float()


def whitened(images: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Energies of images (N, C, H, W) along the axes of :func:`whitening`: (N, dim)."""
    return torch.cat([(_energies(part) - mean) @ axes for part in images.split(BATCH)])
