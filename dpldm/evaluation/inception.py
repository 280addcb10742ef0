"""Inception features, where their weights can be had."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from dpldm.data.fetch import file_sha256
from dpldm.evaluation.fidelity import fid, some_rows
from dpldm.evaluation.settings import EvaluationSettings

INCEPTION_VARIABLE = "DPLDM_INCEPTION_WEIGHTS"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # the file's name has its start
INCEPTION_DIMENSIONS = 2048
CONNECT_SECONDS = 5.0  # a server that has not answered by then counts as unreachable


def find_inception_weights(path: Path | None = None) -> Path | None:
    """The local weights file: `path`, else DPLDM_INCEPTION_WEIGHTS, else torch's download cache; None if there is none.

    The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth` (its release v0.2.0), the TensorFlow
    network of the original FID: with others, a distance is no FID that anybody else has. Raises ValueError if a file
    was named but is not there, or if it has another SHA-256.
    """
    named = path or os.environ.get(INCEPTION_VARIABLE)
    if named and not Path(named).is_file():
        raise ValueError(f"no Inception weights at {named}: give the path of {_inception_file()[1]}")
    found = Path(named or Path(torch.hub.get_dir()) / "checkpoints" / _inception_file()[1])
    if not found.is_file():
        return None
    about = found.stat()
    if (checksum := _checksum(found, about.st_size, about.st_mtime_ns)) != INCEPTION_SHA256:
        arrived = f"SHA-256 {checksum[:12]} of {about.st_size:,} bytes"
        raise ValueError(f"{found}: expected SHA-256 {INCEPTION_SHA256[:12]}, got {arrived}: {_way_out()}")
    return found


@functools.lru_cache
def _checksum(path: Path, size: int, changed: int) -> str:
    """A file's SHA-256, computed once for each state of it."""
    return file_sha256(path)


def _way_out() -> str:
    return f"fetch {_inception_file()[1]} of torch-fidelity v0.2.0 again"


def _inception_file() -> tuple[str, str]:
    """(address, file name) that torch-fidelity uses."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3, URL_INCEPTION_V3.rsplit("/", 1)[1]


def inception_part(
    synthetic: Tensor,
    real_test: Tensor,
    settings: EvaluationSettings,
    weights: Path | None,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """fid_inception (number or None) and fid_inception_note, the reason or what was used."""

    def none(reason: str) -> dict[str, Any]:
        return {"fid_inception": None, "fid_inception_note": reason}

    if settings.inception == "never":
        return none("not asked for")
    if weights is None and settings.inception == "if-file":
        return none(f"no local weights: name a file in {INCEPTION_VARIABLE}, or set inception to 'download'")
    generator = torch.Generator().manual_seed(seed)
    limit = settings.n_inception_images or max(len(synthetic), len(real_test))
    sides = [some_rows(images, limit, generator) for images in (synthetic, real_test)]
    if min(len(side) for side in sides) <= INCEPTION_DIMENSIONS:
        return none(f"needs more than {INCEPTION_DIMENSIONS} images of either side")
    try:
        weights = weights or download_inception_weights()
    except OSError as error:
        return none(f"weights could not be downloaded: {error}")
    extractor, checksum = load_inception(weights, device)
    value = fid(inception_features(extractor, sides[0], device), _known_features(extractor, checksum, sides[1], device))
    used = f"{len(sides[0])} synthetic and {len(sides[1])} real test images, weights sha256 {checksum[:12]}"
    return {"fid_inception": value, "fid_inception_note": f"torch-fidelity inception-v3-compat, {used}"}


def load_inception(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, str]:
    """torch-fidelity's Inception v3 with the weights at `path`, and the file's SHA-256.

    torch-fidelity itself unpickles the file, which can run code in it. So the file is read as weights only and
    handed over as a copy in memory. Raises ValueError if it is not the right file.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        copy = io.BytesIO()
        torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
        copy.seek(0)
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError, KeyError, ValueError) as error:
        told = " ".join(str(error).split())[:80] or type(error).__name__
        raise ValueError(f"{path}: expected weights of Inception v3 ({told}): {_way_out()}") from error
    return extractor.to(device), file_sha256(path)


_KNOWN: dict[str, Tensor] = {}  # features of the real images last asked for, which many records are held to


def _known_features(extractor: nn.Module, checksum: str, images: Tensor, device: torch.device | str) -> Tensor:
    """`inception_features`, which take minutes, computed once for the same images one record after another."""
    key = f"{checksum} {images.shape} {hashlib.sha256(images.contiguous().numpy().data).hexdigest()}"
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = inception_features(extractor, images, device)
    return _KNOWN[key]


@torch.no_grad()
def inception_features(extractor: nn.Module, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """float64 (N, 2048) on the CPU for images (N, 1 or 3, H, W) in [0, 1], rounded to 8 bits, grey repeated to RGB."""
    batches = []
    for batch in images.split(100):
        pixels = (batch.to(device) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        batches.append(extractor(pixels)[0].double().cpu())
    return torch.cat(batches)


def download_inception_weights(connect_seconds: float = CONNECT_SECONDS) -> Path:
    """Fetches the weights into torch's cache, checked by the hash in their name.

    Raises OSError within seconds if the server does not answer, and when a transfer stands still or is wrong.
    """
    address, name = _inception_file()
    if not _answers(address, connect_seconds):
        raise OSError(f"no answer within {connect_seconds:g} s: fetch {name} elsewhere and name it as a file")
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(4 * connect_seconds)  # torch gives none of its own
    try:
        hash_prefix = name.removesuffix(".pth").rsplit("-", 1)[1]
        torch.hub.download_url_to_file(address, str(target), hash_prefix, progress=sys.stderr.isatty())
    except RuntimeError as error:  # wrong hash
        raise OSError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return target


def _answers(address: str, seconds: float) -> bool:
    """Asked in a thread of its own, since name look-up obeys no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urlopen(address, timeout=seconds):
                answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()
