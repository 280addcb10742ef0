"""DPDM, the rival without stage 1: a diffusion model of the pixels themselves, fitted by DP-SGD.

After Dockhorn, Cao, Vahdat and Kreis (2023), "Differentially Private Diffusion Models". Noise levels, loss, samplers
and the private fit are those of the latent diffusion; only the network is another one, and what it sees: pixels, moved
from [0, 1] to [-1, 1] by public constants.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpldm.method import diffusion, training
from dpldm.method.diffusion import NoiseLevels
from dpldm.method.finishing import Finishable
from dpldm.method.labels import one_hot
from dpldm.method.settings import SamplingSettings
from dpldm.method.training import FitSettings
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec
from dpldm.rivals.base import NetworkBaseline

STAGE = "diffusion"
NOISE_FEATURES = 8  # frequencies of the noise level that the network is told
GROUPS = 4  # of channels that are normalised together
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class PixelDiffusionSettings(Finishable):
    """Everything that decides a pixel diffusion beside the data, the budget and the seed.

    fold: side of the squares of pixels that become channels, so that the network works at 1/fold of the size.
    width: channels there, a multiple of 4. levels: 1 or more; from one to the next the side halves and there are
    ``growth`` times as many channels.
    blocks: on each level, on the way up. condition: numbers that tell a block the class and the noise level.
    draws: K, noise levels for each image in each step. label_dropout: share of them that is shown without a class.
    """

    fold: int = 2
    width: int = 8
    levels: int = 2
    growth: int = 4
    blocks: int = 1
    condition: int = 64
    draws: int = 2
    label_dropout: float = 0.1
    noise_levels: NoiseLevels = field(default_factory=NoiseLevels)
    fit: FitSettings = field(default_factory=FitSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        for name in ("fold", "width", "levels", "growth", "blocks", "condition", "draws"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}: raise it")
        if self.width % GROUPS:
            raise ValueError(f"expected a width that is a multiple of {GROUPS}, got {self.width}: round it up")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"expected 0 <= label_dropout < 1, got {self.label_dropout}: use for example 0.1")


# --- the network ------------------------------------------------------------------------------------------------------
# Noise draws of an image are the third axis: (B, channels, K, h, w). A convolution whose kernel is 1 long there treats
# them one by one, and yet Opacus sums its gradient over them before it takes the norm: an image's K draws are averaged
# first and clipped then, as noise multiplicity asks. Opacus has ghost norms for nn.Linear; for nn.Conv3d it makes the
# gradients of single images, a layer at a time. Other layers with parameters there are none.


def _convolution(inputs: int, outputs: int, side: int = 3) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, (1, side, side), padding=(0, side // 2, side // 2))


def _normalised(x: Tensor) -> Tensor:
    """Group normalisation without parameters, each draw on its own: (B, channels, K, h, w) → the same."""
    draws = x.transpose(1, 2)
    return functional.group_norm(draws.flatten(0, 1), GROUPS).unflatten(0, draws.shape[:2]).transpose(1, 2)


def _unfolded(x: Tensor, fold: int) -> Tensor:
    """Channels back to squares of pixels: (B, channels · fold², K, h, w) → (B, channels, K, h · fold, w · fold)."""
    return functional.pixel_shuffle(x.transpose(1, 2), fold).transpose(1, 2)


class Block(nn.Module):
    """A residual block that is told the class and the noise level by a scale and a shift of its channels."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)
        self.scale_and_shift = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, channels, K, h, w), ``condition`` (B, K, condition) → like ``x``."""
        scale, shift = self.scale_and_shift(condition).transpose(1, 2)[..., None, None].chunk(2, dim=1)
        hidden = self.first(functional.silu(_normalised(x)))
        return x + self.second(functional.silu(_normalised(hidden) * (1 + scale) + shift))


class Blocks(nn.ModuleList):
    """Blocks one after the other."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As a `Block`."""
        for block in self:
            x = block(x, condition)
        return x


class PixelUNet(nn.Module):
    """What a class-conditional denoiser of images has to learn: the F of :func:`dpldm.method.diffusion.precondition`.

    Down by one convolution for each level, up again with residual blocks; skips are added, not concatenated. A picture
    for the class and noise level stands beside the noisy image and is added to the output: where noise hides all else
    it can become the mean of the class in a few steps. Picture and last layer start at zero.

    Args:
        shape: (C, H, W), sides that are multiples of ``fold · 2^(levels - 1)``.
    """

    def __init__(self, shape: Shape, num_classes: int, settings: PixelDiffusionSettings) -> None:
        super().__init__()
        self.shape, self.fold = shape, settings.fold
        widths = [settings.width * settings.growth**level for level in range(settings.levels)]
        folded = shape[0] * settings.fold**2

        def blocks(width: int) -> Blocks:
            return Blocks(Block(width, settings.condition) for _ in range(settings.blocks))

        self.condition = nn.Linear(num_classes + 2 * NOISE_FEATURES, settings.condition)
        self.picture = nn.Linear(settings.condition, math.prod(shape))
        self.first = _convolution(2 * folded, widths[0])
        steps = list(itertools.pairwise(widths))
        self.smaller = nn.ModuleList(nn.Conv3d(w, more, (1, 2, 2), stride=(1, 2, 2)) for w, more in steps)
        self.lowest_blocks = blocks(widths[-1])
        self.larger = nn.ModuleList(_convolution(more, 4 * w, 1) for w, more in steps[::-1])
        self.blocks = nn.ModuleList(blocks(w) for w, _ in steps[::-1])
        self.last = _convolution(widths[0], folded)
        for parameter in (*self.picture.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, sigma: Tensor, hot: Tensor) -> Tensor:
        """``noisy`` (B, K, C · H · W), ``sigma`` (B, K, 1), ``hot`` (B, classes) → (B, K, C · H · W)."""
        scales = diffusion.precondition(sigma)
        angles = scales.noise * torch.arange(1, NOISE_FEATURES + 1, device=noisy.device)
        classes = math.sqrt(hot.shape[1]) * hot[:, None].expand(-1, noisy.shape[1], -1)  # as loud as the noise level
        told = [angles.sin(), angles.cos(), classes]
        condition = functional.silu(self.condition(torch.cat(told, dim=-1)))
        picture = self.picture(condition)
        seen = torch.cat([part.unflatten(-1, self.shape) for part in (scales.into * noisy, picture)], dim=2)
        x = self.first(functional.pixel_unshuffle(seen, self.fold).transpose(1, 2))
        skips = []
        for smaller in self.smaller:
            skips.append(x)
            x = smaller(functional.silu(x))
        x = self.lowest_blocks(x, condition)
        for skip, larger, blocks in zip(skips[::-1], self.larger, self.blocks, strict=True):
            x = blocks(skip + _unfolded(larger(x), 2), condition)
        x = self.last(functional.silu(_normalised(x)))
        return picture + _unfolded(x, self.fold).transpose(1, 2).flatten(2)


# --- the method -------------------------------------------------------------------------------------------------------


class PixelDiffusion(NetworkBaseline):
    """DPDM: a class-conditional diffusion model of the pixels, fitted by DP-SGD with K noise draws for each image.

    Guarantee (add or remove one image with its label): each step is a Poisson-subsampled Gaussian mechanism. Every
    image's gradient, of its loss averaged over K draws of a noise level and noise, is clipped to ``fit.clip_norm``;
    their sum has that sensitivity whatever K is. Nothing else reads the images: the scale is a public constant and
    labels are drawn as asked. Sampling is post-processing.

    Where this differs from the published DPDM (nv-tlabs/DPDM): its network has attention, residual blocks on the way
    down too, skips that are concatenated, and no picture for each class; it works on whole pixels, and learned on eight
    GPUs for 300 epochs with batches of 4096 and 32 draws. The ``paper`` profile has that batch, those draws and epochs,
    and well over a million parameters as there; it asks for a GPU. The ``quick`` profile is for one core: less than a
    tenth of the parameters, on folded pixels, for a few epochs with few draws, so expect far less of it.
    Preconditioning is for a scale of 1, not 1/√3. Labels are dropped for a tenth of the images, as there.

    Args:
        shape: (C, H, W) of the images; sides the network can't halve are filled up with black and cut off again.
        num_classes: public. spec: the budget; None for no noise and no privacy. seed: of everything random but a secure
        run's noise. device: where to work.
    """

    settings: PixelDiffusionSettings
    method = "dpdm"
    stages = (STAGE,)

    def __init__(
        self,
        shape: Shape,
        num_classes: int,
        settings: PixelDiffusionSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shape, num_classes, spec, seed, device)
        self.settings = settings
        unit = settings.fold * 2 ** (settings.levels - 1)
        self.filled: Shape = (shape[0], math.ceil(shape[1] / unit) * unit, math.ceil(shape[2] / unit) * unit)
        self.network: PixelUNet | None = None

    def total_steps(self, stage: str) -> int:
        """How many steps a stage yields, for a progress bar."""
        return self.settings.fit.steps

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        super().check(n)
        batch = self.settings.fit.batch
        if n < batch:
            raise ValueError(f"expected at least as many images as the batch of {batch}, got {n}: lower the batch")

    def template(self, n: int) -> Mechanism:
        """DP-SGD on ``n`` images as a mechanism, all but its noise multiplier."""
        fit = self.settings.fit
        return Mechanism("denoiser gradients", STAGE, 1.0, min(1.0, fit.batch / n), fit.steps, fit.clip_norm)

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit the network; yields the steps done, 1 to ``steps``."""
        mechanism = self.mechanism(len(data))
        images, labels = data.read(mechanism)
        pixels, labels = self.to_pixels(images).to(self.device), labels.to(self.device)
        # Which noise levels an image is trained on depends on who else is in the batch, so they must be secret too.
        random = training.generator_on(self.device, self._random(stage))
        with torch.random.fork_rng(devices=[]):  # the initial weights: public, but reproducible
            torch.manual_seed(self._seed(stage, 900))
            network = self._build_network()

        def loss(network: nn.Module, chosen: Tensor) -> Tensor:
            return self.loss(network, pixels[chosen], labels[chosen], random)

        yield from training.fit(network, loss, len(data), mechanism, self.settings.fit, self._noise(stage), random)
        network.cpu()

    def to_pixels(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → what the network sees: (B, d) in [-1, 1], sides filled up with -1."""
        below, right = (full - side for full, side in zip(self.filled[1:], self.shape[1:], strict=True))
        return functional.pad(2 * images - 1, (0, right, 0, below), value=-1.0).flatten(1)

    def to_images(self, pixels: Tensor) -> Tensor:
        """The inverse of :meth:`to_pixels`: (B, d) → (B, C, H, W), cut off at 0 and 1."""
        images = (pixels.unflatten(1, self.filled) + 1) / 2
        return images[..., : self.shape[1], : self.shape[2]].clamp(0, 1)

    def loss(self, network: nn.Module, pixels: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """Each image's loss, averaged over its draws, from nothing but the image and its label: (B,)."""
        settings = self.settings
        known = torch.rand(len(labels), generator=random, device=labels.device) >= settings.label_dropout
        hot = one_hot(torch.where(known, labels, self.num_classes), self.num_classes)

        def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
            return _denoise(network, noisy, sigma, hot)

        return diffusion.denoising_loss(denoise, pixels, settings.noise_levels, settings.draws, random)

    def _build_network(self) -> PixelUNet:
        self.network = PixelUNet(self.filled, self.num_classes, self.settings).to(self.device)
        return self.network

    @torch.no_grad()
    def _drawn(self, labels: Tensor, seed: int, sampling: SamplingSettings | None) -> Iterator[Tensor]:
        assert self.network is not None, "fit or restore first"
        sampling, network = sampling or self.settings.sampling, self.network.to(self.device).eval()
        sigmas = self.settings.noise_levels.schedule(sampling.steps).to(self.device)

        def denoiser(hot: Tensor) -> diffusion.Denoise:
            return lambda x, sigma: _denoise(network, x[:, None], sigma.expand(len(x), 1, 1), hot)[:, 0]

        for index, part in enumerate(labels.split(sampling.batch)):
            random = torch.Generator().manual_seed(10_000 * seed + index)
            noise = torch.randn(len(part), math.prod(self.filled), generator=random).to(self.device)
            hot = one_hot(part.to(self.device), self.num_classes)
            denoise = diffusion.guided(denoiser(hot), denoiser(torch.zeros_like(hot)), sampling.guidance)
            *_, pixels = diffusion.SAMPLERS[sampling.sampler](denoise, noise, sigmas, random)
            yield self.to_images(pixels).cpu()


def _denoise(network: nn.Module, noisy: Tensor, sigma: Tensor, hot: Tensor) -> Tensor:
    """The expected clean pixels of ``noisy`` (B, K, d) at ``sigma`` (B, K, 1) for one-hot classes (B, classes)."""
    scales = diffusion.precondition(sigma)
    return scales.skip * noisy + scales.out * network(noisy, sigma, hot)
