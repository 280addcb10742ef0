"""The denoiser of stage 2: that of a mixture, and a network that corrects it.

Every layer of the network is an ``nn.Linear``, for which Opacus has exact per-example gradient norms.
"""

import torch
from torch import Tensor, nn

from dpldm.method.diffusion import precondition
from dpldm.method.labels import one_hot
from dpldm.method.mixture import Mixture


class ResidualMLP(nn.Module):
    """What a class-conditional denoiser adds to the exact denoiser of the private mixture.

    Input: noisy latents and the mixture's estimate (both scaled to unit size), Fourier features of the noise level and
    a one-hot class (all zeros: no class). Output: (..., dim). The last layer starts at zero, so training starts at the
    mixture and can only be paid for by what is not Gaussian.
    """

    def __init__(self, dim: int, num_classes: int, width: int, depth: int, noise_features: int = 8) -> None:
        super().__init__()
        self.num_classes, self.noise_features = num_classes, noise_features
        self.first = nn.Linear(2 * dim + num_classes + 2 * noise_features, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, noisy: Tensor, estimate: Tensor, sigma: Tensor, one_hot: Tensor) -> Tensor:
        """``noisy``, ``estimate`` (..., dim), ``sigma`` (..., 1), ``one_hot`` (..., classes) → (..., dim)."""
        scales = precondition(sigma)
        angles = scales.noise * torch.arange(1, self.noise_features + 1, device=noisy.device)
        features = [scales.into * noisy, estimate, angles.sin(), angles.cos(), one_hot]
        hidden = self.first(torch.cat(features, dim=-1))
        for block in self.blocks:
            hidden = hidden + block(nn.functional.silu(hidden))
        return self.last(nn.functional.silu(hidden))


def denoise(base: Mixture, network: nn.Module, noisy: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """The mixture's exact denoiser plus the network's correction.

    Args:
        noisy: latents (B, …, dim) with noise of standard deviation ``sigma`` (B, …, 1).
        classes: (B,); the number of classes means "no class".

    Returns:
        Clean latents as they are estimated, (B, …, dim).
    """
    with torch.no_grad():
        estimate = base.denoise(noisy, sigma, classes)
    hot = one_hot(classes, base.num_classes)
    hot = hot.view(len(hot), *[1] * (noisy.dim() - 2), -1).expand(*noisy.shape[:-1], -1)
    return estimate + precondition(sigma).out * network(noisy, estimate, sigma, hot)
