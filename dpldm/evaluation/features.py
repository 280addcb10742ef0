"""Features that images are compared by: those of a classifier of real images, which the project ships."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dpldm.data.memory import lacks_memory
from dpldm.evaluation.classifiers import accuracy, build_network, fit, network_input
from dpldm.evaluation.settings import EVALUATION, EvaluationSettings, LabelledImages

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class FeatureNetwork:
    """A classifier whose hidden layer serves as features, and `metadata` on how it was made."""

    network: nn.Sequential
    metadata: dict[str, str]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """float64 (N, 128) on the CPU, for images float32 (N, C, H, W) in [0, 1]."""
        self.network.eval()
        device = next(self.network.parameters()).device
        hidden = self.network[:-2]  # without the last dropout and the output layer
        return torch.cat([hidden(network_input(batch, device)).double().cpu() for batch in images.split(1000)])


def train_feature_network(
    images: Tensor, labels: Tensor, num_classes: int, seed: int, epochs: int = 8, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Trains the CNN of `build_network` on REAL images: not private, only for measuring.

    The same seed repeats it on one machine, given the same number of threads.
    """
    generator = torch.Generator().manual_seed(seed)
    network = build_network("cnn", tuple(images.shape[1:]), num_classes, generator, device, dropout=False)
    everything = torch.arange(len(images))
    for _ in fit(network, images, labels, everything, epochs, EVALUATION["quick"], generator):
        pass
    metadata = {
        "architecture": "conv 32-64-128, hidden 128, no dropout",
        "image_shape": "x".join(str(size) for size in images.shape[1:]),
        "num_classes": str(num_classes),
        "training": f"real images, {epochs} epochs, not private, for measuring only",
        "seed": str(seed),
    }
    return FeatureNetwork(network, metadata)


def save_feature_network(features: FeatureNetwork, path: Path) -> None:
    """Writes float16 weights and the metadata as safetensors."""
    state = {name: value.half().contiguous().cpu() for name, value in features.network.state_dict().items()}
    save_file(state, path, metadata=features.metadata)


def ship_feature_network(real_train: LabelledImages, real_test: LabelledImages, seed: int = 0, epochs: int = 5) -> Path:
    """Makes the file that `load_feature_network` reads; its metadata say how good the stored network is."""
    path = WEIGHTS_FOLDER / f"{real_train.name}.safetensors"
    made = train_feature_network(real_train.images, real_train.labels, real_train.num_classes, seed, epochs)
    made.network.half().float()  # score the numbers that are stored
    reached = accuracy(made.network, real_test.images, real_test.labels)
    sums = " ".join(sorted(real_train.sha256.values()))
    made.metadata.update(dataset=real_train.name, test_accuracy=f"{reached:.4f}", data_sha256=sums)
    save_feature_network(made, path)
    return path


def load_feature_network(dataset: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network shipped for "mnist" or "fashion_mnist"; the file holds numbers only, so loading runs no code.

    Raises FileNotFoundError if none is shipped for `dataset`, ValueError if the file is damaged.
    """
    path = WEIGHTS_FOLDER / f"{dataset}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no feature network is shipped for {dataset!r}: train one with train_feature_network")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, not a dict
        shape = tuple(int(size) for size in metadata["image_shape"].split("x"))
        network = build_network("cnn", shape, int(metadata["num_classes"]), torch.Generator(), device)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise ValueError(f"damaged feature network {path.name}: restore the file from a fresh copy") from error
    return FeatureNetwork(network, {**metadata, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def feature_network_for(
    real_train: LabelledImages, settings: EvaluationSettings, device: torch.device | str, seed: int
) -> tuple[FeatureNetwork, str]:
    """The shipped network where it fits, else one trained on `real_train` now; and a sentence on which it is."""
    try:
        shipped = load_feature_network(real_train.name, device)
    except FileNotFoundError:
        shipped = None
    if shipped and set(shipped.metadata["data_sha256"].split()) & set(
        real_train.sha256.values()
    ):  # not only a namesake
        return shipped, f"classifier trained on real images (shipped, sha256 {shipped.metadata['sha256'][:12]})"
    classes, epochs = real_train.num_classes, settings.feature_epochs
    trained = train_feature_network(real_train.images, real_train.labels, classes, seed, epochs, device)
    return trained, f"classifier trained on real images (now, {epochs} epochs, seed {seed})"
