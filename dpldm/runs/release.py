"""The folder that a receiver gets from a finished run: written whole or not at all, and read back before it is there.

It holds what the run's ε covers and nothing else: `images.npz`, or a folder of PNGs for each class; `samples.png`; the
privacy statement as `privacy.txt` and `privacy.json`, ledger included; `model-card.md`, `data-card.md`, `README.md`;
the model, if asked for; `SHA256SUMS`. No scores, which are computed from real images; no times, stages, places.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dpldm.data import datasets
from dpldm.data.fetch import file_sha256
from dpldm.privacy import statement as privacy_statement
from dpldm.privacy.checks import PrivacyError
from dpldm.records import files, names
from dpldm.records.images import load_images, save_images
from dpldm.records.schema import RecordError, in_names
from dpldm.records.stages import StageFolder
from dpldm.runs import cards, words
from dpldm.runs.job import SAMPLES
from dpldm.runs.saved import load_synthesizer, save_synthesizer, write_grid

FORMS = ("npz", "png")
IMAGES, PNGS, GRID, MODEL, SUMS = "images.npz", "images", "samples.png", "synthesizer.safetensors", "SHA256SUMS"
PROMISE, PROMISE_IN_WORDS = "privacy.json", "privacy.txt"


class ReleaseError(ValueError):
    """A run that is not released, or a released folder that is not whole. One line: why, and the way out."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its record, and the folder of its stages, images and model."""

    record: Path
    folder: Path


def release(run: Finished, folder: Path, form: str = "npz", with_model: bool = False, seeded_too: bool = False) -> Path:
    """Write the folder to hand over.

    Guarantee: all in it is post-processing of what the record's ledger charges, so it has the (ε, δ) of the statement
    that lies in it; what the record has beside that is not read into it. The secret noise is an assumption: a seeded
    run is refused.

    Args:
        folder: made by this; it may be there if it is empty.
        form: "npz" for one file, "png" for a folder of PNGs for each class.
        with_model: the synthesizer as well, from which more images can be drawn.
        seeded_too: also a seeded run, which protects nobody; its pages say so.

    Returns:
        ``folder``.

    Raises:
        ReleaseError: not private, seeded, not the images of the record; or the folder is not empty. Nothing is written.
        RecordError: the record is not whole, or claims a smaller ε than it spends.
        OSError: a file can't be read or written; nothing is left behind.
    """
    if form not in FORMS:
        raise ReleaseError(f"expected images as {' or '.join(FORMS)}, got {form!r}: choose one")
    record = files.read(run.record)
    _check_record(run.record, record, seeded_too)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ReleaseError(f"{folder}: expected no such folder, or an empty one: name another, nothing is overwritten")
    said = words.statement(record["privacy"], record["dataset"])
    pictures = _read_run(run, record, said)
    facts = cards.covered(record, pictures.shape, pictures.class_names, pictures.counts)
    files.check_writable(folder.parent, 4 * pictures.images.numel() + 5_000 * len(pictures.labels) + 50_000_000)
    temporary = folder.parent / f".{secrets.token_hex(8)}.part"
    try:
        temporary.mkdir()
        if with_model:
            _write_model(run.folder / MODEL, temporary / MODEL, facts.privacy, facts.dataset is not None)
        _write(temporary, facts, said, pictures, form)
        check(temporary)
        pixels = (pictures.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        if not torch.equal(_read_pixels(temporary, form).reshape(pixels.shape), pixels):
            raise ReleaseError(f"{folder}: what was read back is not what was written: choose another disk")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check(folder: Path) -> None:
    """Read a released folder: every file is there with its sum and no other is, ε follows from the ledger, and images,
    samples and model carry the same statement.

    Raises:
        ReleaseError: the first thing that is wrong.
        OSError: a file can't be read.
    """
    _check_sums(folder)
    try:
        told = json.loads((folder / PROMISE).read_text(encoding="utf-8"))
        said, ledger = told["statement"], told["ledger"]
        known = [privacy_statement.statement(ledger, saw) for saw in (True, False, None)]
    except (PrivacyError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = files.one_line(error)
        raise ReleaseError(f"{folder / PROMISE}: expected a statement and its ledger ({reason}): write anew") from None
    carried = {PROMISE: said in known}
    with Image.open(folder / GRID) as page:
        carried[GRID] = json.loads(getattr(page, "text", {}).get("privacy", "null")) == said
    if (folder / IMAGES).is_file():
        with np.load(folder / IMAGES, allow_pickle=False) as arrays:
            carried[IMAGES] = json.loads(str(arrays["privacy"])) == said
    if (folder / MODEL).is_file():
        carried[MODEL] = load_synthesizer(folder / MODEL).privacy == ledger
    for name, agrees in carried.items():
        if not agrees:
            raise ReleaseError(f"{folder / name}: its privacy statement is another than that of the ledger: write anew")


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def _check_record(path: Path, record: Mapping[str, Any], seeded_too: bool) -> None:
    if path.name != names.record_name(record):
        raise ReleaseError(
            f"{path}: expected the name {names.record_name(record)} for what is in it: it was renamed or edited, take "
            "the one that the run wrote"
        )
    if record["privacy"]["epsilon"] is None:
        raise ReleaseError(f"{path.name} is not released: it is not private; make it with an ε and --secure")
    if record["privacy"].get("secure_mode") is not True and not seeded_too:
        raise ReleaseError(
            f"{path.name} is not released: its noise follows from a seed of 32 bits, and who has the images can try "
            "them all and remove it; make it with --secure, or add --i-know if the real images are public anyway"
        )


@dataclass(frozen=True)
class _Pictures:
    """The synthetic images of a run: (N, C, H, W) in [0, 1], in steps of 1/255; labels (N,); names of the classes."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def counts(self) -> list[int]:
        return torch.bincount(self.labels, minlength=len(self.class_names)).tolist()


def _read_run(run: Finished, record: Mapping[str, Any], said: Mapping[str, Any]) -> _Pictures:
    """The images that the run drew, and no others: they have the sum that its last stage wrote down."""
    path = run.folder / "synthetic.npz"
    way_out = "restore it, or delete the record and repeat the same dpldm run, which goes on after its finished stages"
    if not run.folder.is_dir():
        raise ReleaseError(f"{run.folder}: expected the folder of the run, found none: name it where the run was made")
    try:
        drawn = StageFolder(run.folder).load(SAMPLES)[1].get("sha256")
    except RecordError as error:
        raise ReleaseError(f"{error}; nothing is released before that") from None
    found = file_sha256(path) if path.is_file() else "no file"
    if found != drawn:
        raise ReleaseError(f"{path}: expected the images that the run drew (SHA-256 {drawn}), got {found}: {way_out}")
    images, labels, carried = load_images(path)
    with np.load(path, allow_pickle=False) as arrays:
        class_names = tuple(map(str, arrays["class_names"]))
    facts = ("epsilon", "delta", "relation", "noise", "mechanisms")
    if any(carried.get(fact) != said[fact] for fact in facts) or len(labels) != record["metrics"]["n_synthetic"]:
        raise ReleaseError(f"{path}: expected the images of {run.record.name}, got those of another run: {way_out}")
    return _Pictures(images, labels, class_names)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def _write(folder: Path, facts: cards.Covered, said: Mapping[str, Any], pictures: _Pictures, form: str) -> None:
    """Images, samples, statement and pages."""
    if form == "npz":
        save_images(folder / IMAGES, pictures.images, pictures.labels, said, pictures.class_names)
    else:
        _write_pngs(folder / PNGS, pictures)
    write_grid(folder / GRID, pictures.images, pictures.labels, pictures.class_names, said)
    promise = {"statement": said, "ledger": facts.privacy}
    texts = {
        PROMISE: json.dumps(promise, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        PROMISE_IN_WORDS: "\n".join(privacy_statement.in_words(facts.privacy, datasets.tuned_on(facts.dataset or "")))
        + "\n",
        "README.md": cards.readme(facts, form, (folder / MODEL).is_file()),
        "model-card.md": cards.model_card(facts),
        "data-card.md": cards.data_card(facts),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    sums = [f"{file_sha256(folder / name)}  {name}\n" for name in _files_in(folder)]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")


def _write_pngs(folder: Path, pictures: _Pictures) -> None:
    """`03-name/00042.png`: class and place among all images; the number has zeros in front, as sorting needs them."""
    pixels = (pictures.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    width, long = len(str(len(pictures.class_names) - 1)), len(str(len(pixels) - 1))
    places = []
    for number, name in enumerate(pictures.class_names):
        safe = "".join(letter if in_names(letter) else "-" for letter in name)[:40].encode()[:120]
        places.append(folder / f"{number:0{width}}-{safe.decode(errors='ignore')}")
        places[-1].mkdir(parents=True)
    for position, (image, label) in enumerate(zip(pixels, pictures.labels.tolist(), strict=True)):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(places[label] / f"{position:0{long}}.png", format="PNG")


def _write_model(path: Path, written: Path, privacy: Mapping[str, Any], public: bool) -> None:
    """The synthesizer of the run, without the name that the owner gave to the images."""
    saved = load_synthesizer(path)
    if saved.privacy != privacy or saved.image_shape is None:
        raise ReleaseError(f"{path}: expected the synthesizer of this run, got another's: leave out --with-model")
    save_synthesizer(written, saved if public else replace(saved, dataset="own"), saved.image_shape)


# ---------------------------------------------------------------------------------------------------------------------
# What is read back


def _files_in(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != SUMS)


def _check_sums(folder: Path) -> None:
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    found = _files_in(folder)
    if extra := set(listed) ^ set(found):
        raise ReleaseError(f"{folder / min(extra)}: expected the files that {SUMS} lists and no others: write anew")
    for name in found:
        if file_sha256(folder / name) != listed[name]:
            raise ReleaseError(f"{folder / name}: expected SHA-256 {listed[name]}, got another: write anew")


def _read_pixels(folder: Path, form: str) -> Tensor:
    """Images as a receiver finds them, uint8 (N, H, W) or (N, H, W, 3), in the order in which they were drawn."""
    if form == "npz":
        with np.load(folder / IMAGES, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["images"])
    paths = sorted((folder / PNGS).glob("*/*.png"), key=lambda path: path.name)
    return torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
