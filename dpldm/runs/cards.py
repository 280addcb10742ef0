"""What is said of released images in Markdown: a model card, a data card, and how to load them without dpldm.

All of it is made from `Covered`, which holds nothing else than what a run's ε covers and what is public anyway, so that
no score, no time and no place can get onto a card.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpldm.data import datasets
from dpldm.methods import METHODS

_PRIVACY = ("epsilon_target", "noise_multiplier", "epsilon", "epsilon_rdp", "delta", "relation", "accountant",
            "secure_mode", "kind", "mechanisms")  # fmt: skip
SEEDED = (
    "**The noise of these images follows from a seed of 32 bits.** Whoever has them can try all seeds and remove it, "
    "so this release protects nobody; it is fit for images that are public anyway."
)


@dataclass(frozen=True)
class Covered:
    """What of a run may be told: its ε covers it, or it is public.

    dataset: the name of a public data set; None for images of one's own, of whose files not even the name is told.
    image_shape: (channels, height, width). counts: synthetic images of each class, in the order of ``class_names``.
    """

    method: str
    profile: str
    dataset: str | None
    public_data: str | None
    settings: Mapping[str, Any]
    privacy: Mapping[str, Any]
    version: str
    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    counts: Sequence[int]

    @property
    def pictures(self) -> str:
        """How many of what: "200 synthetic images of 12 × 12 pixels, grey, in 3 classes"."""
        channels, height, width = self.image_shape
        colours = "grey" if channels == 1 else "RGB"
        classes = f"{len(self.class_names)} class{'es' * (len(self.class_names) > 1)}"
        return f"{sum(self.counts):,} synthetic images of {height} × {width} pixels, {colours}, in {classes}"

    @property
    def promise(self) -> str:
        """ε and δ with their unit."""
        said = self.privacy
        return f"ε = {said['epsilon']:.4g}, δ = {said['delta']:g}, neighbours: {said['relation']}"


def covered(
    record: Mapping[str, Any], image_shape: tuple[int, int, int], class_names: Sequence[str], counts: Sequence[int]
) -> Covered:
    """The covered facts of a record, with what its synthetic images show. The rest of the record is not looked at."""
    dataset = record["dataset"] if record["dataset"] in datasets.DATASETS else None
    privacy = {key: record["privacy"][key] for key in _PRIVACY if key in record["privacy"]}
    version = f"dpldm {record['versions'].get('dpldm', 'of unknown version')}, commit {record['commit']}"
    return Covered(
        record["method"],
        record["profile"],
        dataset,
        record["public_data"],
        record["settings"]["synthesis"],
        privacy,
        version,
        image_shape,
        tuple(class_names),
        tuple(counts),
    )


_WITH_NUMPY = {
    "npz": """\
import numpy as np

with np.load("images.npz", allow_pickle=False) as data:
    images, labels, class_names = data["images"], data["labels"], data["class_names"]
""",
    "png": """\
from pathlib import Path
import numpy as np
from PIL import Image

files = sorted(Path("images").glob("*/*.png"))
images = np.stack([np.asarray(Image.open(file)) for file in files])
labels = np.array([int(file.parent.name.split("-")[0]) for file in files])
""",
}
_WITH_TORCH = """\
import torch

pixels = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2).float() / 255
dataset = torch.utils.data.TensorDataset(pixels, torch.from_numpy(labels))
"""


def readme(facts: Covered, form: str, with_model: bool) -> str:
    """The first page of a release. ``form``: "npz" or "png", as its images are."""
    model = ", the model (`synthesizer.safetensors`, for `dpldm sample`)" if with_model else ""
    return (
        f"# Synthetic images\n\n{_warning(facts)}{facts.pictures}. {facts.promise}.\n\n"
        f"Beside them: samples (`samples.png`), the privacy statement (`privacy.txt`, `privacy.json`), a model card, a "
        f"data card{model}, and checksums: `sha256sum -c SHA256SUMS`.\n\n"
        f"With NumPy:\n\n```python\n{_WITH_NUMPY[form]}```\n\nThen with PyTorch:\n\n```python\n{_WITH_TORCH}```\n"
    )


def model_card(facts: Covered) -> str:
    """How the images were made: method, promise, every use of the private images, settings, and what to expect."""
    method = METHODS[facts.method]
    trial = "- The profile `smoke` tries whether everything works; its images are not meant to be good.\n"
    said, uses = facts.privacy, []
    for use in said["mechanisms"]:
        numbers = (f"{use[key]:.6g}" for key in ("noise_multiplier", "sample_rate", "steps", "sensitivity"))
        uses.append(f"| {_cell(use['stage'])} | {_cell(use['name'])} | {' | '.join(numbers)} |")
    return (
        f"# Model card\n\n{_warning(facts)}"
        f"- Method: {method.title} (`{facts.method}`). {method.about}\n"
        f"- Program: {facts.version}; profile `{facts.profile}`.\n{trial if facts.profile == 'smoke' else ''}"
        f"- Trained on: {_trained_on(facts)}; public data beside it: {_cell(facts.public_data or 'none')}.\n"
        f"- Privacy: {facts.promise}, accountant: {said['accountant']}. `privacy.txt` says it in words, with what it "
        "assumes.\n\n"
        "Made for: trying out and training image classifiers where the real images can't be had. Not made for: "
        "statements about any person, or about groups that are rare among the images; what few images show is what the "
        "noise hides best. Biases of the real images stay.\n\n"
        "Not told: how good the images are. Such scores are computed from real images, and ε does not cover them.\n\n"
        "## Every use of the private images\n\n"
        "| stage | mechanism | noise multiplier | sample rate | steps | sensitivity |\n|---|---|---|---|---|---|\n"
        + "\n".join(uses)
        + f"\n\n## Settings\n\n```json\n{json.dumps(facts.settings, indent=1, sort_keys=True)}\n```\n"
    )


def data_card(facts: Covered) -> str:
    """What the images are, how many of each class, what they were made from, and what only their owner can tell."""
    rows = [
        f"| {number} | {_cell(name)} | {count:,} |"
        for number, (name, count) in enumerate(zip(facts.class_names, facts.counts, strict=True))
    ]
    return (
        f"# Data card\n\n{_warning(facts)}{facts.pictures}, values 0 to 255. No image is a photograph or a drawing of "
        "anything: all were drawn from a model. "
        f"The model was trained on {_trained_on(facts)}.\n\n"
        "| label | class | synthetic images |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "How many there are of each class was fixed beforehand; it says nothing about the real ones. Public beside the "
        f"images: how many real ones there were, their shape, and the names of the classes.{_kind(facts)}\n\n"
        f"Privacy: {facts.promise}; one image is protected, not everything one person contributed.\n\n"
        "Not known to the program that wrote this: the licence of these files, who is in the real images and agreed, "
        "and what else was released from the same images, whose ε adds up with this one. Ask whoever gave you this.\n"
    )


def _warning(facts: Covered) -> str:
    return "" if facts.privacy.get("secure_mode") is True else f"{SEEDED}\n\n"


def _kind(facts: Covered) -> str:
    kind = facts.privacy.get("kind")
    return f" Their kind, as their owner said without a look at any: {kind}." if kind else ""


def _trained_on(facts: Covered) -> str:
    if facts.dataset is None:
        return "private images, of which nothing more is told"
    known = datasets.DATASETS[facts.dataset]
    return f"the public data set {known.name} ({known.homepage}, {known.licence})"


def _cell(text: str) -> str:
    """A text within a line or a table of Markdown."""
    plain = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")
    return plain.replace("|", "\\|")
