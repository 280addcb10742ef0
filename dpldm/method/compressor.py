"""What stage 1 is to the rest of the method: images ↔ latent vectors behind one ``fit / encode / decode``.

A compressor is fitted to private images through mechanisms that it charges itself. Its `encode` may then be applied to
private images only inside another mechanism: a private encoder does not make the latents private. `decode` and
everything computed from it is post-processing.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dpldm.privacy.budget import Allowance
from dpldm.privacy.guard import PrivateData
from dpldm.privacy.mechanisms import Mechanism
from dpldm.privacy.noise import NoiseSource

STAGE = "compression"
Shape = tuple[int, int, int]


class Compressor(Protocol):
    """What stage 2 needs of stage 1. Latents are (N, dim) with entries of about unit size."""

    public_data: str | None
    dim: int

    @property
    def steps(self) -> int:
        """How many steps `fit` yields."""

    def planned(self, allowance: Allowance, n: int) -> list[Mechanism]:
        """What `fit` to ``n`` images will charge, in order."""

    def fit(
        self, data: PrivateData, allowance: Allowance, noise: NoiseSource, random: torch.Generator
    ) -> Iterator[int]: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...
