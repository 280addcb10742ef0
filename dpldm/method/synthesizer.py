"""The two stages under one budget: fit to private images and labels, then sample synthetic ones."""

import math
import secrets
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dpldm.method import compression
from dpldm.method.classifier import Selector
from dpldm.method.decoders import Matcher
from dpldm.method.denoiser import ResidualMLP
from dpldm.method.drawing import Drawing
from dpldm.method.edge_transport import Transport
from dpldm.method.mixture import Mixture
from dpldm.method.settings import SamplingSettings, SynthesisSettings
from dpldm.method.stages import Compression, Diffusion, EdgeTransport, Matching, Selection, Stage
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism, PrivacySpec, gaussian_noise_multiplier
from dpldm.privacy.noise import NoiseSource


class LatentDiffusion:
    """Two-stage private synthesizer; reading C of the paper: both stages are private and composed.

    ``fit`` charges every mechanism to ``ledger``; afterwards ``ledger.epsilon(spec.delta) <= spec.epsilon``. Without a
    ``spec`` nothing is noised or clipped and the ledger's ε is infinite.
    """

    method = "dpldm"

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        settings: SynthesisSettings,
        spec: PrivacySpec | None,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.num_classes, self.settings, self.spec, self.seed = shape, num_classes, settings, spec, seed
        self.device = torch.device(device)
        self.compressor = compression.build(shape, settings.compression, 1000 * seed + 800)
        self.mixture: Mixture | None = None
        self.network: ResidualMLP | None = None
        self.matcher = Matcher(shape, num_classes, settings.matching, 1000 * seed + 700, self.device)
        self._start_anew()
        self.drawing = Drawing(self)
        self.diffusion = Diffusion(self)
        self._stages = {stage.name: stage for stage in self.build_stages()}

    def _start_anew(self) -> None:
        """Forget what would stay of an earlier fit."""
        self.selector = Selector(self.num_classes, self.settings.selection)
        self.transport = Transport(self.num_classes, self.settings.transport)

    def build_stages(self) -> list[Stage]:
        """The stages of the fit, in order."""
        settings, chosen = self.settings, list[Stage]([Compression(self), self.diffusion])
        if settings.matches:
            chosen.append(Matching(self))
        if settings.selects:
            chosen.append(Selection(self))
        if settings.moves:
            chosen.append(EdgeTransport(self))
        return chosen

    # -- fitting ------------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> Sequence[str]:
        """The names of the stages, in order; each is one call of :meth:`fit_stage`."""
        return tuple(self._stages)

    def total_steps(self, stage: str) -> int:
        """About how many steps a stage yields, for a progress bar."""
        return self._stages[stage].steps

    def check(self, n: int) -> None:
        """Refuse what can't work with ``n`` private images, before anything is read."""
        batch = self.settings.fit.batch
        if n < batch:
            raise ValueError(f"expected at least as many images as the batch of {batch}, got {n}: lower the batch")
        if self.spec is not None:
            self.spec.check(n)
            self._allowance(n)

    def fit(self, data: PrivateData) -> None:
        """All stages, one after the other."""
        self.check(len(data))
        for stage in self.stages:
            for _ in self.fit_stage(stage, data):
                pass

    def fit_stage(self, stage: str, data: PrivateData) -> Iterator[int]:
        """Fit one stage; yields the steps done. Noise and batches depend on the seed and the stage only, so a run that
        resumes after the first stage ends as one that was never interrupted."""
        index = self.stages.index(stage)
        secure = self.spec is not None and self.spec.secure_mode
        noise = NoiseSource.secure() if secure else NoiseSource.seeded(1000 * self.seed + index)
        # Which noise levels an example is trained on depends on who else is in the batch, so they must be secret too.
        random = torch.Generator().manual_seed(secrets.randbits(63) if secure else 1000 * self.seed + 500 + index)
        with torch.random.fork_rng(devices=[]):  # the initial weights: public, but reproducible
            torch.manual_seed(1000 * self.seed + 900 + index)
            if index == 0:
                self._start_anew()
            chosen = self._stages[stage]
            yield from chosen.fit(data, self._part(chosen, len(data)), noise, random)

    def planned(self, n: int, before: str | None = None, after: str | None = None) -> list[Mechanism]:
        """What a fit to ``n`` images will charge, in order; before it, that is known without looking at any.

        Args:
            before, after: only the stages before, or after, the one of this name.
        """
        names = list(self._stages)
        first = names.index(after) + 1 if after else 0
        last = names.index(before) if before else len(names)
        chosen = [self._stages[name] for name in names[first:last]]
        return [mechanism for stage in chosen for mechanism in stage.planned(self._part(stage, n), n)]

    def _part(self, stage: Stage, n: int) -> Allowance:
        """What a stage may spend; one that costs nothing gets the whole, which it does not use."""
        whole = self._allowance(n)
        return whole.part(stage.share) if stage.share else whole

    def _allowance(self, n: int) -> Allowance:
        if self.spec is None:
            return Allowance(0.0, 1e-5)
        if self.spec.epsilon is not None:
            return Allowance(gaussian_noise_multiplier(self.spec.epsilon, self.spec.delta), self.spec.delta)
        mechanism = self.diffusion.gradients(n, [])
        epsilon = Ledger([mechanism]).epsilon(self.spec.delta)
        alone = gaussian_noise_multiplier(epsilon, self.spec.delta)
        return Allowance(alone * math.sqrt(self.settings.diffusion_share), self.spec.delta)

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """Synthetic images for ``labels`` (N,), in batches (B, C, H, W) in [0, 1] in the labels' order.

        Post-processing: costs no privacy, however many images are drawn.
        """
        yield from self.drawing.released(labels, seed, sampling)

    def sample_latents(self, labels: Tensor, seed: int, sampling: SamplingSettings | None = None) -> Iterator[Tensor]:
        """The latents (B, dim) of one batch after every sampling step."""
        yield from self.drawing.latents(labels, seed, sampling)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state(self, stage: str) -> dict[str, Tensor]:
        """A finished stage's tensors."""
        return self._stages[stage].state()

    def restore(self, stage: str, state: dict[str, Tensor]) -> None:
        """Put a finished stage's tensors back, in the order of :attr:`stages`."""
        self._stages[stage].restore(state)
