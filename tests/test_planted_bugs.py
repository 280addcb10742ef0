"""Mistakes planted one at a time, that would break the promise: each has to be seen by `neighbours.check`.

A bug is a change in the text of one function of the library, which is then compiled again. `make test` plants those of
`FAST`, the three that went unseen among them; the others are marked slow.
"""

import importlib
import inspect
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neighbours
import pytest


@dataclass(frozen=True)
class Bug:
    """``where``: module, a colon, then function or class and method. ``case``: of `neighbours.cases`. ``seen``: part
    of the complaint that is expected."""

    name: str
    case: str
    where: str
    old: str
    new: str
    seen: str


OURS, REFINED, AUTOENCODER = "dpldm, pca", "dpldm, refined-pca", "dpldm, autoencoder"
GAUSSIAN = "class-gaussian"
PCA, MIXTURE = "method.pca:PrivatePCA.fit", "method.mixture:fit_mixture"

BUGS = [
    # The mean of the images, and their second moments
    Bug(
        "mean not clipped",
        GAUSSIAN,
        PCA,
        "clip_rows(self._coefficients(images), mechanism.sensitivity)",
        "self._coefficients(images)",
        "image mean",
    ),
    Bug(
        "mean of the batch's own length",
        GAUSSIAN,
        PCA,
        "release(total, mechanism, noise) / len(data)",
        "release(total, mechanism, noise) / len(images)",
        "mean moves",
    ),
    Bug(
        "mean without the mechanism",
        GAUSSIAN,
        PCA,
        "(release(total, mechanism, noise) / len(data)).float()",
        "(total / len(data)).float()",
        "mean moves",
    ),
    Bug(
        "kernel width from the images",
        GAUSSIAN,
        PCA,
        "        yield 2\n",
        "        self.scale = self.scale * images.std()\n        yield 2\n",
        "scale moves",
    ),
    Bug(
        "moments not clipped",
        GAUSSIAN,
        PCA,
        "clip_rows(self._coefficients(images) - self.mean, radius).double()",
        "(self._coefficients(images) - self.mean).double()",
        "image second moments",
    ),
    Bug(
        "moments about the true mean",
        GAUSSIAN,
        PCA,
        "self._coefficients(images) - self.mean, radius)",
        "self._coefficients(images) - self._coefficients(images).mean(0), radius)",
        "image second moments",
    ),
    Bug(
        "moments clipped before they are centred",
        GAUSSIAN,
        PCA,
        "clip_rows(self._coefficients(images) - self.mean, radius).double()",
        "(clip_rows(self._coefficients(images), radius) - 2 * self.mean).double()",
        "image second moments",
    ),
    Bug(
        "moments released twice",
        GAUSSIAN,
        PCA,
        "        yield 2\n",
        "        release(centred.T @ centred, of_moments, noise)\n        yield 2\n",
        "2 releases, 1 charged",
    ),
    # A mixture of latents
    Bug("latents not clipped", GAUSSIAN, MIXTURE, "clip_rows(encode(images), radius)", "encode(images)", "latent"),
    Bug(
        "latents whitened by their own spread",
        GAUSSIAN,
        MIXTURE,
        "clip_rows(encode(images), radius)",
        "clip_rows(encode(images) / encode(images).std(0), radius)",
        "latent",
    ),
    Bug(
        "responsibilities that do not sum to 1",
        OURS,
        MIXTURE,
        "mixture.responsibilities(latents, labels))",
        "2 * mixture.responsibilities(latents, labels))",
        "latent sums",
    ),
    Bug(
        "covariances from latents themselves",
        GAUSSIAN,
        MIXTURE,
        "_symmetric_noise(_class_moments(latents, labels, data.num_classes), of_moments, noise)",
        "_class_moments(latents, labels, data.num_classes).float()",
        "model's mixture",
    ),
    Bug(
        "exact counts in the mixture",
        GAUSSIAN,
        MIXTURE,
        "counts = (sums[..., -1] / count_scale).clamp_min(least)",
        "counts = torch.stack([shares[labels == c].sum(0) for c in range(data.num_classes)]).clamp_min(least)",
        "model's mixture",
    ),
    Bug(
        "count weighs more than is charged",
        GAUSSIAN,
        MIXTURE,
        "count_scale = radius / 2",
        "count_scale = 2 * radius",
        "latent sums",
    ),
    Bug(
        "one round too many",
        OURS,
        MIXTURE,
        "range(settings.iterations - 1)",
        "range(settings.iterations)",
        "latent sums",
    ),
    Bug(
        "rounds until the latents are explained",
        OURS,
        MIXTURE,
        "    for _ in range(settings.iterations - 1):\n",
        "    for _ in range(settings.iterations - 1):\n        if len(images) > 48:\n            break\n",
        "the run ends otherwise",
    ),
    Bug(
        "moments of all classes for each",
        GAUSSIAN,
        "method.mixture:_class_moments",
        "latents[labels == c].T @ latents[labels == c]",
        "latents.T @ latents",
        "latent second moments",
    ),
    # Edges
    Bug(
        "edges' moments not clipped",
        OURS,
        MIXTURE,
        "clip_rows(encode(images), radius)",
        'encode(images) if stage == "transport" else clip_rows(encode(images), radius)',
        "energy",
    ),
    Bug(
        "whitening of edges from private images",
        OURS,
        "method.edge_transport:Transport.fit",
        "                return whitened(images, self.mean, self.axes)\n",
        "                self.mean = self.mean + images.mean()\n"
        "                return whitened(images, self.mean, self.axes)\n",
        "transport/mean moves",
    ),
    Bug(
        "true means of edges",
        OURS,
        MIXTURE,
        "    return mixture\n",
        '    if stage == "transport":\n        mixture.means[:, 0] += latents.mean(0)\n    return mixture\n',
        "transport/targets moves",
    ),
    # The classifier that selects
    Bug(
        "residuals not clipped",
        OURS,
        "method.classifier:Selector.fit",
        "clip_rows((features @ weights).softmax(1) - wanted, 1.0)",
        "3 * ((features @ weights).softmax(1) - wanted)",
        "selector gradients",
    ),
    Bug(
        "features not clipped",
        OURS,
        "method.classifier:Selector.fit",
        "clip_rows(features, mechanism.sensitivity).double()",
        "(3 * features).double()",
        "selector gradients",
    ),
    Bug(
        "views are added, not averaged",
        OURS,
        "method.classifier:Selector.fit",
        "features.T @ residuals / len(views)",
        "2 * features.T @ residuals",
        "selector gradients",
    ),
    Bug(
        "a stop that looks at the gradient",
        OURS,
        "method.classifier:Selector.fit",
        "            velocity = settings.momentum * velocity + release(total_gradient, mechanism, noise) / len(data)\n",
        "            velocity = settings.momentum * velocity + release(total_gradient, mechanism, noise) / len(data)\n"
        "            if len(labels) != 48:\n                return\n",
        "the run ends otherwise",
    ),
    Bug(
        "weights start at the classes' shares",
        OURS,
        "method.classifier:Selector.fit",
        "weights = torch.zeros(views[0].shape[1], self.num_classes, dtype=torch.float64)",
        "weights = wanted.mean(0).expand(views[0].shape[1], -1).clone()",
        "selection/weights moves",
    ),
    # Mean embeddings
    Bug(
        "exact class counts",
        OURS,
        "method.embedding:mean_embedding",
        "(total[:, -1:] / count_scale).clamp_min(least)",
        "torch.bincount(labels, minlength=data.num_classes)[:, None].clamp_min(1)",
        "matching",
    ),
    Bug(
        "exact class counts, DP-MERF",
        "dp-merf",
        "method.embedding:mean_embedding",
        "(total[:, -1:] / count_scale).clamp_min(least)",
        "torch.bincount(labels, minlength=data.num_classes)[:, None].clamp_min(1)",
        "embedding moves",
    ),
    Bug(
        "features not clipped, longer than 1",
        "dp-merf",
        "method.embedding:_class_sums",
        "clip_rows(features(part.to(features.pixels.device)).cpu(), 1.0)",
        "1.5 * features(part.to(features.pixels.device)).cpu()",
        "mean embedding",
    ),
    Bug(
        "counts weigh more than is charged",
        "dp-merf",
        "method.embedding:_class_sums",
        "rows.new_full((len(rows), 1), count_scale)",
        "rows.new_full((len(rows), 1), 10 * count_scale)",
        "mean embedding",
    ),
    Bug(
        "features of centred images",
        "dp-merf",
        "method.embedding:_class_sums",
        "features(part.to(features.pixels.device))",
        "features(part.to(features.pixels.device) - images.mean(0))",
        "mean embedding",
    ),
    # DP-SGD, in each method that uses it
    Bug(
        "loss depends on the batch",
        OURS,
        "method.diffusion:denoising_loss",
        "    sigma = levels",
        "    latents = latents - latents.mean(0)\n    sigma = levels",
        "an example's loss",
    ),
    Bug(
        "loss depends on the batch, pixels",
        "dpdm",
        "method.diffusion:denoising_loss",
        "    sigma = levels",
        "    latents = latents - latents.mean(0)\n    sigma = levels",
        "an example's loss",
    ),
    Bug(
        "mean over the batch",
        "dpdm",
        "method.diffusion:denoising_loss",
        "error.square().mean(dim=(1, 2))",
        "error.square().mean(dim=(1, 2)) / len(latents)",
        "an example's loss",
    ),
    Bug(
        "hard examples count more",
        OURS,
        "method.diffusion:denoising_loss",
        "    return error.square().mean(dim=(1, 2))\n",
        "    each = error.square().mean(dim=(1, 2))\n    return each * each.detach() / each.detach().max()\n",
        "an example's loss",
    ),
    Bug(
        "targets against the batch",
        REFINED,
        "method.autoencoder:RefinedPCA.fit",
        "(network(latents[chosen]) - missing[chosen]).square().sum(1)",
        "(network(latents[chosen]) - missing[chosen] + missing[chosen].mean(0)).square().sum(1)",
        "an example's loss",
    ),
    Bug(
        "weights from what is missing",
        REFINED,
        "method.autoencoder:RefinedPCA.fit",
        "        for step in training.fit(self._build(),",
        "        self._build()\n        self.pca.scale = self.pca.scale + missing.mean()\n"
        "        for step in training.fit(self._build(),",
        "scale moves",
    ),
    Bug(
        "one loss for all",
        REFINED,
        "method.autoencoder:RefinedPCA.fit",
        "(network(latents[chosen]) - missing[chosen]).square().sum(1)",
        "(network(latents[chosen]) - missing[chosen]).square().sum().expand(len(chosen))",
        "an example's loss",
    ),
    Bug(
        "batch normalisation of codes",
        AUTOENCODER,
        "method.autoencoder:Autoencoder._encode",
        'code = network["encoder"](images.flatten(1) - 0.5)',
        'code = network["encoder"](images.flatten(1) - 0.5)\n        code = code - code.mean(0)',
        "an example's loss",
    ),
    Bug(
        "pixels centred on the batch",
        AUTOENCODER,
        "method.autoencoder:Autoencoder._loss",
        "(decoded - images[chosen].flatten(1)).square().sum(1)",
        "(decoded - images[chosen].flatten(1) + images[chosen].mean()).square().sum(1)",
        "an example's loss",
    ),
    Bug(
        "bias of the decoder from the images",
        AUTOENCODER,
        "method.autoencoder:Autoencoder.fit",
        "        images, _ = data.read(mechanism)\n",
        '        images, _ = data.read(mechanism)\n        self.network["decoder"][-1].bias.data += images.mean()\n',
        "decoder",
    ),
    Bug(
        "no clipping in DP-SGD",
        OURS,
        "method.training:_private_step",
        "    for part in parts:\n",
        "    module.get_clipping_coef = lambda: torch.ones_like(module.get_norm_sample())\n    for part in parts:\n",
        "another sum",
    ),
    Bug(
        "the sum is clipped, not each gradient",
        "dpdm",
        "method.training:_private_step",
        "loss(module, part)).backward()",
        "loss(module, part).sum().expand(len(part)) / len(part)).backward()",
        "another sum",
    ),
    Bug(
        "charged for fewer steps",
        OURS,
        "method.training:fit_private",
        "range(1, mechanism.steps + 1)",
        "range(1, mechanism.steps + 2)",
        "charged",
    ),
    Bug(
        "half the noise",
        "dpdm",
        "privacy.noise:NoiseSource.normal",
        "(draws * std)",
        "(draws * std / 2)",
        "noise of",
    ),
    # Noised latents
    Bug(
        "latents of reading B not clipped",
        "reading-b",
        "rivals.class_gaussian:NoisedLatents._fit_mixture",
        "clip_rows(self.compressor.encode(images), radius)",
        "3 * self.compressor.encode(images)",
        "noised latents",
    ),
    Bug(
        "labels of reading B without noise",
        "reading-b",
        "rivals.class_gaussian:NoisedLatents._fit_mixture",
        "rows[:, dim:].argmax(1)",
        "torch.cat([labels, labels])[: len(rows)] * 0 + int(labels.sum() % 3)",
        "mixture",
    ),
    Bug(
        "labels of reading B weigh more",
        "reading-b",
        "rivals.class_gaussian:NoisedLatents._fit_mixture",
        "one_hot(labels, data.num_classes) * radius",
        "one_hot(labels, data.num_classes) * 2 * radius",
        "noised latents",
    ),
    # Transport gradients
    Bug(
        "transport gradient not clipped",
        "dp-sinkhorn",
        "rivals.sinkhorn:Sinkhorn.clipped_gradient",
        "clip_rows(whole, settings.clip_norm).view_as(gradient)",
        "whole.view_as(gradient)",
        "transport gradients",
    ),
    Bug(
        "sensitivity of one ball's radius, each image clipped",
        "dp-sinkhorn",
        "rivals.sinkhorn:Sinkhorn.clipped_gradient",
        "clip_rows(whole, settings.clip_norm).view_as(gradient)",
        "clip_rows(whole.view_as(gradient), 4 * settings.clip_norm)",
        "transport gradients",
    ),
    Bug(
        "labels drawn like the private ones",
        "dp-sinkhorn",
        "rivals.sinkhorn:Sinkhorn.fit_gradients",
        "classes = self.some_labels(count, random)",
        "classes = labels[-count:]",
        "moves",
    ),
    Bug(
        "steps that look at the sample",
        "dp-sinkhorn",
        "rivals.sinkhorn:Sinkhorn.fit_gradients",
        "trainer.step(generated, release(gradient, mechanism, noise))",
        "trainer.step(generated, release(gradient, mechanism, noise) * len(chosen))",
        "model's",
    ),
    # Discriminator gradients
    Bug(
        "discriminator gradient not clipped",
        "gs-wgan",
        "rivals.gs_wgan:Discriminator.gradient",
        "clip_rows(gradient, self.settings.clip_norm)",
        "gradient",
        "discriminator gradients",
    ),
    Bug(
        "generator sees the discriminator",
        "gs-wgan",
        "rivals.gs_wgan:GradientSanitizedGAN.fit_gradients",
        "trainer.step(generated, release(gradient, mechanism, noise))",
        "trainer.step(generated, release(gradient, mechanism, noise) + gradient)",
        "model's",
    ),
    Bug(
        "labels of a part",
        "gs-wgan",
        "rivals.gs_wgan:GradientSanitizedGAN.fit_gradients",
        "classes = self.some_labels(self.generator_settings.images, random)",
        "classes = labels[-self.generator_settings.images :]",
        "move",
    ),
    # The run itself
    Bug(
        "the seed hashes the file",
        "dp-merf",
        "runs.experiment:fit_seed",
        "[] if experiment.secure_mode else [sums]",
        "[sums]",
        "mean embedding",
    ),
]

# The three that every test of the library let through, the seed that told of the file, and one of each kind
FAST = {
    "exact class counts",
    "edges' moments not clipped",
    "loss depends on the batch",
    "the seed hashes the file",
    "mean not clipped",
    "moments about the true mean",
    "moments released twice",
    "exact counts in the mixture",
    "residuals not clipped",
    "a stop that looks at the gradient",
    "features not clipped, longer than 1",
    "one loss for all",
    "pixels centred on the batch",
    "no clipping in DP-SGD",
    "half the noise",
    "labels of reading B without noise",
    "transport gradient not clipped",
    "generator sees the discriminator",
}


def planted(where: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a changed function in its place."""
    module_name, _, named = where.partition(":")
    module, path = importlib.import_module(f"dpldm.{module_name}"), named.split(".")
    owner: Any = module
    for name in path[:-1]:
        owner = getattr(owner, name)
    before = getattr(owner, path[-1])
    source = inspect.getsource(before)
    assert source.count(old) == 1, f"{where} changed: plant the bug anew"
    made: dict[str, Any] = {}
    changed = compile(textwrap.dedent(source.replace(old, new)), str(module.__file__), "exec")
    exec(changed, module.__dict__, made)  # the library's own text, changed above
    importers = [one for name, one in sys.modules.items() if name.startswith("dpldm.")] if owner is module else [owner]
    for place in importers:
        if getattr(place, path[-1], None) is before:
            monkeypatch.setattr(place, path[-1], made[path[-1]])


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.name, marks=[] if bug.name in FAST else pytest.mark.slow) for bug in BUGS],
)
def test_a_planted_bug_is_seen(bug: Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted(bug.where, bug.old, bug.new, monkeypatch)
    complaints = neighbours.check(bug.case, tmp_path)
    first = next(complaints, "nothing")
    found = [first, *complaints] if bug.seen not in first else [first]
    assert any(bug.seen in line for line in found), found[:5]


def test_bugs_have_names_of_their_own_and_three_stand_by_each_mechanism() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {bug.name for bug in BUGS} >= FAST
    assert {bug.case for bug in BUGS} >= set(neighbours.cases()) - {"dpldm, public-autoencoder"}
