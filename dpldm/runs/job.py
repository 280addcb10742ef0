"""A checked experiment with what it works on: everything that can be refused is refused here, before the work."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.data import datasets, own
from dpldm.data.images import ImageData
from dpldm.evaluation import inception, protocol
from dpldm.method.finishing import unfinished
from dpldm.methods import METHODS, MethodSettings, Synthesizer
from dpldm.records import files
from dpldm.records.names import record_name
from dpldm.records.settings import to_json
from dpldm.records.stages import StageFolder
from dpldm.runs.chosen import describe
from dpldm.runs.experiment import (
    Experiment,
    ExperimentError,
    Folders,
    balanced_labels,
    choose_device,
    fit_seed,
    limit_of,
)

SAMPLES = "samples"


@dataclass(frozen=True)
class Job:
    """A checked experiment with what it works on. ``fit`` and ``drawn``: digests of all that decides the fit and the
    images, which are the same in runs that differ in how these are scored."""

    experiment: Experiment
    settings: MethodSettings
    train: ImageData
    test: ImageData | None
    synthesizer: Synthesizer
    labels: Tensor
    device: torch.device
    description: dict[str, Any]
    record_path: Path
    stages: StageFolder
    fit: str
    drawn: str

    def made_of(self, stage: str) -> str:
        """What tells a stage of the chain that ends in images from those of other runs."""
        return self.drawn if stage == SAMPLES else self.fit

    @property
    def model_path(self) -> Path:
        return self.stages.path / "synthesizer.safetensors"

    @property
    def images_path(self) -> Path:
        return self.stages.path / "synthetic.npz"


def prepare(experiment: Experiment, folders: Folders) -> Job:
    """Load the data and check all that can be checked; writes nothing but missing public data."""
    experiment = experiment.resolved()
    assert experiment.settings is not None
    assert experiment.n_synthetic is not None
    device = choose_device(experiment.device)
    train, test = load(experiment, folders)
    files.check_memory(experiment.n_synthetic, train.image_shape)
    build = METHODS[experiment.method].build
    seed = fit_seed(experiment, train.sha256)
    synthesizer = build(train.image_shape, train.num_classes, experiment.settings, experiment.spec, seed, device)
    synthesizer.check(len(train))
    labels = balanced_labels(experiment.n_synthetic, train.num_classes)
    if test is not None:
        some = torch.zeros(1).expand(len(labels), *train.image_shape)
        protocol.check_synthetic(some, labels, train, test)
        if os.environ.get(inception.INCEPTION_VARIABLE):
            inception.find_inception_weights()
    description = describe(experiment, train, test, synthesizer, folders)
    record_path = folders.records / record_name(description)
    stages = StageFolder(folders.runs / record_path.stem)
    made_of = _decided_by(experiment, describe(experiment, train, None, synthesizer, folders), device)
    return Job(
        experiment,
        experiment.settings,
        train,
        test,
        synthesizer,
        labels,
        device,
        description,
        record_path,
        stages,
        *made_of,
    )


def _decided_by(experiment: Experiment, unscored: dict[str, Any], device: torch.device) -> tuple[str, str]:
    """Digests of what decides the fit and the images of a run, told by its description without test images."""
    images = unscored | {"profile": None, "device": str(device)}
    fit = images | {
        "dataset": None,  # what your own folder is called; the data are told by their checksums
        "data_sha256": sorted(unscored["data_sha256"].values()),
        "settings": unscored["settings"] | {"synthesis": to_json(unfinished(experiment.settings)), "n_synthetic": None},
    }
    texts = [json.dumps(facts, sort_keys=True) for facts in (fit, images)]
    return hashlib.sha256(texts[0].encode()).hexdigest(), hashlib.sha256("".join(texts).encode()).hexdigest()


def check(experiment: Experiment, folders: Folders = Folders()) -> Path:
    """All that `run` checks before it works; writes nothing but missing public data.

    Returns:
        Where the record of this experiment is, or would be.

    Raises:
        ValueError: something can't work.
    """
    return prepare(experiment, folders).record_path


def load(experiment: Experiment, folders: Folders) -> tuple[ImageData, ImageData | None]:
    """Training images, and test images where the run is to be scored."""
    test = None
    if isinstance(experiment.dataset, Path):
        train = own.load_own(experiment.dataset, experiment.kind, experiment.resize)
        if experiment.test_data is not None:
            test = own.load_own(experiment.test_data, experiment.kind, experiment.resize)
            if set(test.sha256.values()) & set(train.sha256.values()):
                raise ExperimentError(
                    f"{experiment.test_data}: expected test images that are not trained on, got what is in "
                    f"{experiment.dataset}, by its checksum: give others, or none for a run that is not scored"
                )
            if (test.image_shape, test.class_names) != (train.image_shape, train.class_names):
                raise ExperimentError(
                    f"test images differ from the training images: expected {train.image_shape} and classes "
                    f"{', '.join(train.class_names)}, got {test.image_shape} and {', '.join(test.class_names)}"
                )
    else:
        train = datasets.load(experiment.dataset, "train", folders.data)
        test = datasets.load(experiment.dataset, "test", folders.data)
    limit = limit_of(experiment)
    return limited(train, limit), test and limited(test, limit)


def limited(images: ImageData, limit: int | None) -> ImageData:
    """At most ``limit`` images, chosen at random and always the same: the choice depends on their number only."""
    if limit is None or len(images) <= limit:
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[:limit])
