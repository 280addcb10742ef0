"""Files that are written whole or not at all, and records as such files.

Every file is written under a temporary name in its own folder, flushed to the disk and renamed, so that a reader finds
either the old file or the whole new one. Reading executes no code: JSON, safetensors and `.npz` without pickles.
"""

import fcntl
import json
import math
import os
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpldm.privacy.checks import PrivacyError
from dpldm.privacy.statement import check_claim
from dpldm.records.names import definition, record_name
from dpldm.records.schema import RECORD, RecordError, validate


def _cannot_write(path: Path, error: OSError) -> OSError:
    reason = error.strerror or " ".join(str(error).split())
    message = f"cannot write {path}: {reason}; free some space or choose another folder"
    return OSError(error.errno, message) if error.errno else OSError(message)


def write_atomically(path: Path, write_to: Callable[[Path], object]) -> Path:
    """Write a file whole or not at all.

    Args:
        path: where the file shall be; its folder is made where it is missing.
        write_to: called with a temporary path in the same folder; what it writes is flushed to the disk and renamed.

    Returns:
        `path`.

    Raises:
        OSError: in one line; nothing is left behind, and a file that was there before is unchanged.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(count: int, image_shape: tuple[int, int, int]) -> None:
    """Call before anything is allocated: so many images can be drawn, held and written here.

    Raises:
        RecordError: in one line, with the number that fits.
    """
    each = math.prod(image_shape) * (1 + 4) + 8  # as bytes, as floats, and a label
    most = machine_memory() // each
    if count > most:
        raise RecordError(f"expected at most {most:,} images, which fit the memory here, got {count:,}: draw fewer")


def check_writable(folder: Path, free_bytes: int = 1_000_000) -> None:
    """Call before long work: the folder can be made, takes a file and has room.

    Args:
        folder: made where it is missing.
        free_bytes: how much room the work needs.

    Raises:
        OSError: in one line.
    """
    folder = Path(folder)
    probe = folder / f".{secrets.token_hex(8)}.part"
    try:
        write_atomically(probe, lambda temporary: temporary.write_bytes(b"x" * 4096)).unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OSError(
            f"cannot write into {folder}: expected a folder that takes new files ({error.__cause__ or error}); "
            "free some space or choose another folder"
        ) from error
    if free < free_bytes:
        raise OSError(
            f"cannot write into {folder}: expected {free_bytes / 1e6:,.0f} MB of room, found {free / 1e6:,.0f} MB; "
            "free some space or choose another folder"
        )


def write(record: Mapping[str, Any], folder: Path) -> Path:
    """Check a record and write it under its name; a record of the same run is replaced.

    Returns:
        Where it is: `folder / record_name(record)`.

    Raises:
        RecordError: the record is not whole; nothing is written.
        OSError: the folder can't be written; nothing is left behind.
    """
    try:
        validate(record)
        path = Path(folder) / record_name(record)
    except RecordError as error:
        raise RecordError(f"record not written: {error}; correct it and write again") from None
    body = json.loads(json.dumps(record, sort_keys=True, allow_nan=False))
    ordered = {key: body[key] for key in RECORD}
    text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    """Read one record and check it.

    Raises:
        RecordError: the file is not a whole record; says what was expected and what to do.
        OSError: there is no such file, or it can't be read.
    """
    path = Path(path)
    text = path.read_bytes()
    try:
        record = json.loads(text.decode("utf-8"))  # lets NaN through, which the next line refuses
        validate(record)
        definition(record)
        check_claim(record["privacy"])
    except (ValueError, RecursionError) as error:  # RecordError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        told = isinstance(error, RecordError | PrivacyError)
        fault = str(error) if told else f"expected a record in JSON, got {one_line(error)}"
        raise RecordError(
            f"{path}: {fault}; restore the file from version control, or delete it and repeat the run"
        ) from None
    return record


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 160 letters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Read every `.json` of a folder but hidden ones, in the order of their names; none where the folder is missing.

    Raises:
        RecordError: a file is corrupt, or its name is not its record's: it was renamed, or edited by hand.
    """
    records = []
    for path in sorted(Path(folder).glob("[!.]*.json")):
        record = read(path)
        expected = record_name(record)
        if unicodedata.normalize("NFC", path.name) != unicodedata.normalize("NFC", expected):
            raise RecordError(
                f"{path}: expected the name {expected} for what is in it; restore the file from version control, "
                "or delete it and repeat the run"
            )
        records.append(record)
    return records


def find(folder: Path, description: Mapping[str, Any]) -> Path | None:
    """Where the record of the described run is, or None if that run has not been made.

    Args:
        folder: of records; it may be missing.
        description: as for `record_name`.

    Raises:
        RecordError: the description is not whole, or the record that is there is corrupt.
    """
    path = Path(folder) / record_name(description)
    if not path.exists():
        return None
    read(path)
    return path


@contextmanager
def locked(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time; ``waits`` is called where another has the lock, which goes when that process does, however
    it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
