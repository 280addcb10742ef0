"""Scores on held-out training images: what settings are chosen by, without a look at the test set."""

import time
import typing
from dataclasses import dataclass

import torch

from dpldm.data.images import validation_split
from dpldm.evaluation import classifiers, features, fidelity, settings
from dpldm.method.compressor import Compressor
from dpldm.methods import METHODS
from dpldm.privacy.accounting import Ledger
from dpldm.privacy.guard import PrivateData
from dpldm.rivals import real
from dpldm.runs.experiment import Experiment, ExperimentError, Folders, balanced_labels, choose_device, derived_seed
from dpldm.runs.job import load


@dataclass(frozen=True)
class Validation:
    """How settings do on held-out training images.

    accuracy: of the first classifier asked for, in [0, 1]; ``accuracies``: of all of them, by kind.
    reconstruction_error: mean squared error of stage 1 per pixel. dim: its latent dimensions. None without one.
    seconds: of the fit. fid_classifier: Fréchet distance to the held-out images, None where not asked for or too few.
    public_data: what public images the method learned from, None for none.
    """

    accuracy: float
    reconstruction_error: float | None
    dim: int | None
    seconds: float
    accuracies: dict[str, float]
    fid_classifier: float | None = None
    public_data: str | None = None


def validate(
    experiment: Experiment,
    folders: Folders = Folders(),
    classifier: str | typing.Sequence[str] = "mlp",
    share: float = 1 / 6,
    fid: bool = False,
    reconstruct: bool = False,
) -> Validation:
    """Score settings for choosing among them; the test set is not touched.

    Fits to the training images but a random ``share`` of them, trains classifiers on a third of the profile's number
    of synthetic images and scores them on the share held out. The choice that follows has seen private images and is
    charged to no budget, as in the literature: it is for benchmark data, and the book's page on limits says so.

    Args:
        classifier: one or several of `dpldm.evaluation.settings.CLASSIFIERS`.
        share: of the training images, above 0 and below 1.
        fid: measure the Fréchet distance, on the features of a network that has seen all real training images.
        reconstruct: take real images of the rest, encoded and decoded by stage 1, in place of synthetic ones; they are
            not private and show what compression costs.

    Raises:
        ValueError: an unknown classifier, or ``reconstruct`` for a method without stage 1.
    """
    kinds = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if not kinds or not set(kinds) <= set(settings.CLASSIFIERS):
        known = " or ".join(settings.CLASSIFIERS)
        raise ExperimentError(
            f"expected classifiers out of {known}, got {', '.join(kinds) or 'none'}: choose among them"
        )
    experiment = experiment.resolved()
    assert experiment.settings is not None
    assert experiment.n_synthetic is not None
    assert experiment.evaluation is not None
    device = choose_device(experiment.device)
    train, _ = load(experiment, folders)
    rest, held_out = validation_split(train, share, derived_seed(experiment.seed, "validation"))
    synthesizer = METHODS[experiment.method].build(
        train.image_shape, train.num_classes, experiment.settings, experiment.spec, experiment.seed, device
    )
    synthesizer.check(len(rest))
    compressor: Compressor | None = getattr(synthesizer, "compressor", None)
    if reconstruct and compressor is None:
        raise ExperimentError(f"method {experiment.method!r} compresses nothing: choose one with a stage 1")
    guard = PrivateData(rest.images, rest.labels, rest.num_classes, Ledger())
    start = time.monotonic()
    for stage in synthesizer.stages:
        for _ in synthesizer.fit_stage(stage, guard):
            pass
    seconds = time.monotonic() - start
    labels = balanced_labels(experiment.n_synthetic // 3, train.num_classes)
    error = None
    if compressor is not None:
        error = (compressor.decode(compressor.encode(held_out.images)) - held_out.images).square().mean().item()
    if compressor is not None and reconstruct:
        yardstick = METHODS["real"].build(train.image_shape, train.num_classes, real.RealImagesSettings(), None, 0)
        for _ in yardstick.fit_stage("copy", guard):
            pass
        images = compressor.decode(compressor.encode(torch.cat(list(yardstick.sample(labels, experiment.seed)))))
    else:
        images = torch.cat(list(synthesizer.sample(labels, experiment.seed)))
    accuracies = {}
    for kind in kinds:
        trained = classifiers.train_classifier(
            kind, images, labels, train.num_classes, experiment.evaluation, device, experiment.seed
        )
        accuracies[kind] = classifiers.accuracy(trained.network, held_out.images, held_out.labels)
    distance = None
    if fid and min(len(images), len(held_out)) > classifiers.FEATURE_DIMENSIONS:
        network, _ = features.feature_network_for(train, experiment.evaluation, device, experiment.seed)
        distance = fidelity.fid(network.features(images), network.features(held_out.images))
    return Validation(
        accuracy=accuracies[kinds[0]],
        reconstruction_error=error,
        dim=None if compressor is None else compressor.dim,
        seconds=seconds,
        accuracies=accuracies,
        fid_classifier=distance,
        public_data=None if compressor is None else compressor.public_data,
    )
