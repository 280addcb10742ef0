"""Records of runs: name, check, write, read and tabulate them; stages of a run kept on disk; image files.

A record is one JSON file that says everything about one run: what was asked for, what was measured, and on what. Every
file is written under a temporary name in its own folder, flushed to the disk and renamed, so that a reader finds
either the old file or the whole new one. Reading executes no code: JSON, safetensors and `.npz` without pickles.
"""

import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dpldm.data import pixel_fault
from dpldm.privacy import PrivacyError, check_claim

CLASSIFIERS = ("cnn", "mlp", "logreg")
_ROUNDING = 1e-6  # relative; how far a sum of floating-point numbers may pass a limit


class RecordError(ValueError):
    """A record, stage or image file that is not what it should be. One line: expected, arrived, way out."""


# --- what a record holds ----------------------------------------------------------------------------------------------

Check = tuple[str, Callable[[Any], bool]]  # in words, and as a test


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    """JSON knows whole numbers of any length; what counts or measures anything fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _or_null(check: Check) -> Check:
    words, test = check
    return f"{words}, or null", lambda value: value is None or test(value)


def in_names(letter: str) -> bool:
    """Whether names of records may have it: letters of any script with their marks, digits, '_', '.' and '-'."""
    return letter in "_.-" or unicodedata.category(letter)[0] in "LMN"


_NAME: Check = (
    "a name of 1 to 48 letters, digits, '_', '.' or '-' that starts with a letter or digit",
    lambda value: isinstance(value, str) and 0 < len(value) <= 48 and value[0].isalnum() and all(map(in_names, value)),
)
_TEXT: Check = ("a text that is not empty", _is_text)
_OBJECT: Check = ("an object", _is_object)
_POSITIVE: Check = ("a finite number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE: Check = ("a finite number, 0 or more", lambda value: _is_number(value) and value >= 0)
_FRACTION: Check = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_FRACTIONS: Check = (
    "a list of numbers from 0 to 1, one per classifier seed",
    lambda value: _is_list(value) and all(_FRACTION[1](item) for item in value),
)
_DELTA: Check = ("a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
_COUNT: Check = ("a whole number, 1 or more", lambda value: _is_whole(value) and value >= 1)
# A Fréchet distance of two nearly equal sets may come out a hair below zero.
_DISTANCE: Check = ("a finite number, 0 or more", lambda value: _is_number(value) and value >= -1e-3)

_RECORD: dict[str, Check] = {
    "schema": ("1", lambda value: _is_whole(value) and value == 1),
    "method": _NAME,
    "dataset": _NAME,
    "profile": _NAME,
    "seed": ("a whole number, 0 or more", lambda value: _is_whole(value) and value >= 0),
    "public_data": _or_null(("a text that names the public data", _is_text)),
    "settings": _OBJECT,
    "privacy": _OBJECT,
    "metrics": _OBJECT,
    "seconds": _OBJECT,
    "device": _TEXT,
    "commit": _TEXT,
    "versions": (
        "an object of package names and version texts",
        lambda value: _is_object(value) and bool(value) and all(_is_text(item) for item in value.values()),
    ),
    "data_sha256": (
        "an object of file names and SHA-256 sums in 64 hexadecimal digits",
        lambda value: (
            _is_object(value)
            and bool(value)
            and all(isinstance(item, str) and re.fullmatch(r"[0-9a-f]{64}", item) for item in value.values())
        ),
    ),
}
_PRIVACY_ASKED: dict[str, Check] = {"epsilon_target": _or_null(_POSITIVE), "delta": _or_null(_DELTA)}
_PRIVACY: dict[str, Check] = _PRIVACY_ASKED | {
    "epsilon": _or_null(_POSITIVE),
    "epsilon_rdp": _or_null(_POSITIVE),
    "relation": _or_null(_TEXT),
    "accountant": _or_null(_TEXT),
    "mechanisms": ("a list of objects", lambda value: _is_list(value) and all(_is_object(item) for item in value)),
}
_MECHANISM: dict[str, Check] = {
    "name": _TEXT,
    "stage": _TEXT,
    "noise_multiplier": _NOT_NEGATIVE,
    "sample_rate": ("a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "steps": _COUNT,
    "sensitivity": _POSITIVE,
}
_METRICS: dict[str, Check] = {
    "fid_classifier": _or_null(_DISTANCE),
    "fid_inception": _or_null(_DISTANCE),
    "accuracy": _OBJECT,
    "precision": _or_null(_FRACTION),
    "recall": _or_null(_FRACTION),
    "n_synthetic": _COUNT,
}
_PARAMETERS: Check = ("a whole number, 0 or more", lambda value: _is_whole(value) and value >= 0)
_SECONDS: dict[str, Check] = {
    stage: _or_null(_NOT_NEGATIVE) for stage in ("compression", "diffusion", "sampling", "evaluation")
}
_DEFINING = ("method", "dataset", "profile", "seed", "settings", "privacy", "public_data", "data_sha256")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_fields(where: str, values: Mapping[str, Any], fields: Mapping[str, Check], closed: bool = False) -> None:
    """Every field is there and passes its test; other keys are refused where `closed`."""
    for key, (words, test) in fields.items():
        if key not in values:
            raise RecordError(f"{where}{key}: expected {words}, got nothing")
        if not test(values[key]):
            raise RecordError(f"{where}{key}: expected {words}, got {_shown(values[key])}")
    unknown = sorted(str(key) for key in values if key not in fields)
    if closed and unknown:
        raise RecordError(f"{where}{unknown[0]}: unknown key, expected only {', '.join(fields)}")


def _check_json(where: str, value: Any) -> None:
    """The value can be written as strict JSON and read back as itself."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RecordError(f"{where}: expected texts as keys, got {_shown(key)}")
            _check_json(f"{where}.{key}" if where else key, item)
    elif _is_list(value):
        for position, item in enumerate(value):
            _check_json(f"{where}[{position}]", item)
    elif not (value is None or isinstance(value, str | bool) or _is_number(value)):
        raise RecordError(
            f"{where}: expected text, true, false, null, a finite number, a list or an object, got {_shown(value)}"
        )


def _check_privacy(privacy: Mapping[str, Any]) -> None:
    _check_fields("privacy.", privacy, _PRIVACY)
    for position, mechanism in enumerate(privacy["mechanisms"]):
        _check_fields(f"privacy.mechanisms[{position}].", mechanism, _MECHANISM)
    epsilon, target = privacy["epsilon"], privacy["epsilon_target"]
    if epsilon is None:
        if target is not None:
            raise RecordError(f"privacy.epsilon: expected the ε spent, at most {target:g}, got null")
        return
    if target is None and privacy.get("noise_multiplier") is None:
        raise RecordError("privacy: expected epsilon_target or noise_multiplier, whichever was asked for, got neither")
    if target is not None and epsilon > target * (1 + _ROUNDING):
        raise RecordError(f"privacy.epsilon: expected at most the target {target:g}, got {epsilon!r}")
    for key in ("delta", "epsilon_rdp", "relation", "accountant"):
        if privacy[key] is None:
            raise RecordError(f"privacy.{key}: expected {_PRIVACY[key][0].removesuffix(', or null')}, got null")
    if not privacy["mechanisms"]:
        raise RecordError("privacy.mechanisms: expected at least one for a finite ε, got an empty list")
    if any(mechanism["noise_multiplier"] == 0 for mechanism in privacy["mechanisms"]):
        raise RecordError("privacy.mechanisms: expected noise multipliers above 0 for a finite ε, got 0")


def _check_secure_mode(settings: Mapping[str, Any], privacy: Mapping[str, Any]) -> None:
    """Settings say how the noise was to be drawn, privacy how it was; the name of the record covers the former only."""
    asked, stated = settings.get("secure_mode"), privacy.get("secure_mode")
    if stated is not None and stated is not asked:
        raise RecordError(f"privacy.secure_mode: expected {_shown(asked)} as in the settings, got {_shown(stated)}")


def validate(record: Mapping[str, Any]) -> None:
    """Check a whole record: every key, its type and its range.

    A private run (`privacy.epsilon` a number) must name what was asked for, as `epsilon_target` or, where the noise was
    given instead, `noise_multiplier`; its ε is at most the target; its ledger is not empty. Other keys are refused at
    the top level and allowed below it. A list of accuracies may be empty: that classifier was not trained.

    Raises:
        RecordError: in one line, the first thing that is wrong.
    """
    if not _is_object(record):
        raise RecordError(f"expected an object with {', '.join(_RECORD)}, got {_shown(record)}")
    _check_fields("", record, _RECORD, closed=True)
    _check_privacy(record["privacy"])
    _check_secure_mode(record["settings"], record["privacy"])
    optional = {"parameters": _PARAMETERS} if "parameters" in record["metrics"] else {}  # not in the oldest records
    _check_fields("metrics.", record["metrics"], _METRICS | optional)
    accuracy = record["metrics"]["accuracy"]
    _check_fields("metrics.accuracy.", accuracy, dict.fromkeys([*CLASSIFIERS, *accuracy], _FRACTIONS))
    seconds = record["seconds"]
    _check_fields("seconds.", seconds, _SECONDS | dict.fromkeys(seconds, _or_null(_NOT_NEGATIVE)))
    _check_json("", record)


# --- what a run is called ---------------------------------------------------------------------------------------------


def _canonical(value: Any) -> Any:
    """The same value in one spelling: 1.0 is 1, tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if _is_list(value):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(value: Any) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _definition(description: Mapping[str, Any]) -> dict[str, Any]:
    """What defines a run, out of a description or a whole record, checked; results are left out."""
    _check_fields("", description, {key: _RECORD[key] for key in _DEFINING})
    asked = description["privacy"]
    _check_fields("privacy.", asked, _PRIVACY_ASKED)
    noise_multiplier = asked.get("noise_multiplier")
    if noise_multiplier is not None and not (_POSITIVE[1](noise_multiplier) and asked["epsilon_target"] is None):
        raise RecordError(
            "privacy.noise_multiplier: expected a finite number above 0 where epsilon_target is null, "
            f"got {_shown(noise_multiplier)} with epsilon_target {_shown(asked['epsilon_target'])}"
        )
    private = asked["epsilon_target"] is not None or noise_multiplier is not None
    defining = {key: description[key] for key in _DEFINING}
    defining["privacy"] = {
        "epsilon_target": asked["epsilon_target"],
        "noise_multiplier": noise_multiplier,
        "delta": asked["delta"] if private else None,
    }
    _check_json("", defining)
    return defining


def record_name(record: Mapping[str, Any]) -> str:
    """The file name of a record: `<dataset>-<method>-eps<ε>-<profile>-seed<seed>-<hash>.json`.

    The hash is the first 8 hexadecimal digits of the SHA-256 of what defines the run (method, dataset, profile, seed,
    settings, the ε or noise multiplier asked for, δ, public data, checksums of the data), so a description of a run
    not yet made has the same name as its record. ε is the target (`10`, `0.2`), `none` without privacy, and
    `_of_noise<noise multiplier>` where the noise was asked for.

    Args:
        record: a record, or a description: a mapping that has at least `method`, `dataset`, `profile`, `seed`,
            `settings`, `public_data`, `data_sha256` and `privacy` with `epsilon_target` (or null), `delta` and, where
            the noise is asked for, `noise_multiplier`.

    Raises:
        RecordError: a defining key is missing or wrong.
    """
    defining = _definition(record)
    target, noise_multiplier = defining["privacy"]["epsilon_target"], defining["privacy"]["noise_multiplier"]
    epsilon = "none" if target is None else f"{target:g}"
    if noise_multiplier is not None:
        epsilon = f"_of_noise{noise_multiplier:g}"
    return (
        f"{defining['dataset']}-{defining['method']}-eps{epsilon}-{defining['profile']}"
        f"-seed{defining['seed']}-{_digest(defining)}.json"
    )


# --- files ------------------------------------------------------------------------------------------------------------


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
    each = math.prod(image_shape) * (2 + 2 * 4) + 8  # as bytes twice, as floats twice, and a label
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
    ordered = {key: body[key] for key in _RECORD}
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
        _definition(record)
        check_claim(record["privacy"])
    except (ValueError, RecursionError) as error:  # RecordError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        told = isinstance(error, RecordError | PrivacyError)
        fault = str(error) if told else f"expected a record in JSON, got {_one_line(error)}"
        raise RecordError(
            f"{path}: {fault}; restore the file from version control, or delete it and repeat the run"
        ) from None
    return record


def _one_line(error: BaseException) -> str:
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


# --- tables -----------------------------------------------------------------------------------------------------------

_GROUP = ["dataset", "method", "public_data", "profile", "epsilon", "variant", "finished"]
_SCORES = (*CLASSIFIERS, "fid_classifier", "fid_inception", "precision", "recall", "seconds")
_SUMMARY = [
    *_GROUP, "epsilon_spent", "delta", "seeds", "score",
    "mean", "standard_deviation", "min", "max", "n", "values", "records",
]  # fmt: skip


def _scores(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Every value of every score of one run; an empty list where a score was not taken."""
    metrics = record["metrics"]
    single = {key: metrics[key] for key in ("fid_classifier", "fid_inception", "precision", "recall")}
    single["seconds"] = sum(value for value in record["seconds"].values() if value is not None)
    scores = {key: list(map(float, values)) for key, values in metrics["accuracy"].items()}
    return scores | {key: [] if value is None else [float(value)] for key, value in single.items()}


def finishing(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the images of a rival's run were finished, as its settings say; None where they were left as they are."""
    return record["settings"].get("synthesis", {}).get("finishing")


def _group_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What records have in common when they differ by nothing but their seed; `variant` names their settings."""
    defining = _definition(record)
    privacy = defining["privacy"]
    epsilon = privacy["epsilon_target"] if privacy["epsilon_target"] is not None else record["privacy"]["epsilon"]
    variant = _digest({key: value for key, value in defining.items() if key != "seed"})
    return (
        record["dataset"], record["method"], record["public_data"] or "", record["profile"],
        math.inf if epsilon is None else float(epsilon), variant, finishing(record) is not None,
    )  # fmt: skip


def summary(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """All scores over all seeds, in long form: one row per group of runs and score.

    Runs are one group where only their seed differs. The values of a classifier are pooled over synthesis seeds ×
    classifier seeds; nothing is selected.

    Returns:
        A frame with `dataset`, `method`, `public_data` ('' for none), `profile`, `epsilon` (the target, or what was
        spent where the noise was asked for; infinite without privacy), `variant` (8 hexadecimal digits that name
        everything else that was asked for), `finished` (whether a rival's images were, see
        `finishing`), `epsilon_spent` (the largest), `delta`, `seeds` (how many synthesis
        seeds), `score` (`cnn`, `mlp`, `logreg`: fractions of 1; `fid_classifier`, `fid_inception`; `precision`,
        `recall`; `seconds`: of the whole run), `mean`, `standard_deviation` (of the sample; NaN for one value),
        `min`, `max`, `n`, `values` (every one) and `records` (their file names). Sorted.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(_group_of(record), []).append(record)
    rows = []
    for group in sorted(groups):
        members = sorted(groups[group], key=lambda record: record["seed"])
        spent = [record["privacy"]["epsilon"] for record in members]
        shared = dict(zip(_GROUP, group, strict=True)) | {
            "epsilon_spent": math.inf if None in spent else max(map(float, spent)),
            "delta": members[0]["privacy"]["delta"] if None not in spent else math.nan,
            "seeds": len({record["seed"] for record in members}),
            "records": tuple(record_name(record) for record in members),
        }
        scores = [_scores(record) for record in members]
        for score in dict.fromkeys([*_SCORES, *(key for one in scores for key in one)]):
            values = np.array([value for one in scores for value in one.get(score, [])])
            if len(values):
                spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
                rows.append(
                    shared | {
                        "score": score, "mean": float(values.mean()), "standard_deviation": spread,
                        "min": float(values.min()), "max": float(values.max()),
                        "n": len(values), "values": tuple(values.tolist()),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows, columns=_SUMMARY)


def table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per group of runs that differ only by their seed, with what `summary` says about each score.

    Returns:
        A frame with the columns of `summary` that describe the group, and for each score `s` of `cnn`, `mlp`,
        `logreg`, `fid_classifier`, `fid_inception`, `precision`, `recall`, `seconds`: `s` (the mean), `s_spread` (the
        sample standard deviation, NaN for one value), `s_min`, `s_max`, `s_values` (a tuple of every value). A score
        that no run of the group has is NaN with an empty tuple.
    """
    long = summary(records)
    described = [*_GROUP, "epsilon_spent", "delta", "seeds", "records"]
    columns = {"mean": "", "standard_deviation": "_spread", "min": "_min", "max": "_max", "values": "_values"}
    rows = []
    for _, group in long.groupby(_GROUP, sort=False):
        row = {key: group.iloc[0][key] for key in described}
        for score in _SCORES:
            found = group[group["score"] == score]
            for source, suffix in columns.items():
                missing: Any = () if source == "values" else math.nan
                row[f"{score}{suffix}"] = found.iloc[0][source] if len(found) else missing
        rows.append(row)
    names = described + [f"{score}{suffix}" for score in _SCORES for suffix in columns.values()]
    return pd.DataFrame(rows, columns=names)


def _with_spread(mean: float, spread: float, scale: float, digits: int) -> str:
    if math.isnan(mean):
        return "–"
    shown = f"{mean * scale:.{digits}f}"
    return shown if math.isnan(spread) else f"{shown} ± {spread * scale:.{digits}f}"


def plain(value: float, digits: int = 3) -> str:
    """A number to so many digits, written out.

    >>> plain(1000.0), plain(0.2), plain(12345.678, 7), plain(1e-5)
    ('1000', '0.2', '12345.68', '0.00001')
    """
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def duration(seconds: float) -> str:
    """Seconds for people; NaN for what was not measured.

    >>> duration(3.21), duration(42.4), duration(75.4)
    ('3.2 s', '42 s', '1 min 15 s')
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def to_text(frame: pd.DataFrame) -> str:
    """A table for the terminal: aligned, rounded, with units, each row followed up by the names of its records.

    Args:
        frame: from `table`.
    """
    if frame.empty:
        return "No records yet."
    header = ["", "dataset", "method", "ε", "profile", "seeds", "CNN (%)", "MLP (%)", "log. reg. (%)",
              "FID (classifier)", "FID (Inception)", "time"]  # fmt: skip
    lines = [header]
    for number, row in enumerate(frame.to_dict("records"), start=1):
        accuracies = [_with_spread(row[name], row[f"{name}_spread"], 100, 1) for name in CLASSIFIERS]
        distances = [_with_spread(row[n], row[f"{n}_spread"], 1, 2) for n in ("fid_classifier", "fid_inception")]
        method = row["method"] + (f" + {row['public_data']}" if row["public_data"] else "")
        method += ", finished" if row["finished"] else ""
        epsilon = "none" if math.isinf(row["epsilon"]) else plain(row["epsilon"])
        lines.append([f"[{number}]", row["dataset"], method, epsilon, row["profile"], str(row["seeds"]),
                      *accuracies, *distances, duration(row["seconds"])])  # fmt: skip
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"}]  # taken by no run
    widths = [max(map(_width, column)) for column in columns]
    left = {0, 1, 2, 4}  # words; numbers go to the right
    aligned = []
    for line in zip(*columns, strict=True):
        cells = []
        for position, (cell, width) in enumerate(zip(line, widths, strict=True)):
            room = " " * (width - _width(cell))
            cells.append(cell + room if position in left else room + cell)
        aligned.append("  ".join(cells).rstrip())
    notes = ["", "Accuracy on real test images, mean ± standard deviation over all seeds; time of one run. Records:"]
    notes += [f"[{number}] {name}" for number, names in enumerate(frame["records"], start=1) for name in names]
    return "\n".join(aligned + notes)


# --- where a run was made ---------------------------------------------------------------------------------------------

_PACKAGES = (
    "dpldm", "torch", "torchvision", "opacus", "dp-accounting", "numpy", "scipy", "safetensors", "torchmetrics",
)  # fmt: skip


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    named = _output_of("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else None
    return named or platform.processor() or platform.machine() or "unknown processor"


def device_name(device: str = "cpu") -> str:
    """A torch device in words: the processor's model and the cores this process may use, or the GPU's name."""
    kind = torch.device(device).type
    if kind == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return f"{kind}: {_processor()}, {len(allowed)} {'core' if len(allowed) == 1 else 'cores'}"


def _commit(root: Path) -> str | None:
    """The commit that `root` is a checkout of, with `-dirty` where the library differs from it; None outside of git."""
    git = ("git", "-C", str(root))
    top, commit = _output_of(*git, "rev-parse", "--show-toplevel"), _output_of(*git, "rev-parse", "--verify", "HEAD")
    # Installed into an environment inside somebody else's repository: that commit says nothing about this code.
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None
    changed = _output_of(*git, "status", "--porcelain", "--", "dpldm", "pyproject.toml", "requirements.lock")
    return f"{commit}-dirty" if changed or changed is None else commit


def environment_facts(device: str = "cpu") -> dict[str, Any]:
    """The part of a record that says where it was made: `versions`, `device` and `commit`.

    Args:
        device: the torch device the run used.

    Returns:
        `versions`: package names and versions; `device`: see `device_name`; `commit`: the git commit of this library,
        with `-dirty` where its files differ from it (records and notebooks do not count), or `dpldm <version>` where
        the library is not a git checkout.
    """
    versions = _versions()
    commit = _commit(Path(__file__).resolve().parent.parent)
    return {
        "versions": versions,
        "device": device_name(device),
        "commit": commit or f"dpldm {versions.get('dpldm', 'of unknown version')}",
    }


# --- stages of a run --------------------------------------------------------------------------------------------------


def _tensor_digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two sharing memory, as safetensors asks for."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return stored


class StageFolder:
    """The finished stages of one run, so that an interrupted run goes on after the last of them.

    One safetensors file per stage, with the facts as JSON in its header and a SHA-256 over both. Use one folder per
    run, for instance one that is called as the run's record.

    Args:
        path: the folder; made by the first `save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def file(self, stage: str) -> Path:
        """Where a stage is kept. Raises RecordError for a name that can't be a file's."""
        if not _NAME[1](stage):
            raise RecordError(f"stage: expected {_NAME[0]}, got {_shown(stage)}; choose another name")
        return self.path / f"{stage}.safetensors"

    def has(self, stage: str) -> bool:
        """Whether the stage was finished; `load` says whether its file is whole."""
        return self.file(stage).is_file()

    def save(self, stage: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Keep a finished stage, whole or not at all.

        Args:
            stage: its name.
            tensors: any shapes and dtypes; they come back on the CPU.
            facts: whatever else the next stage needs, as it can be written in JSON.

        Raises:
            RecordError: `facts` can't be written as strict JSON.
            OSError: the folder can't be written.
        """
        path = self.file(stage)
        _check_json("facts", facts)
        text = json.dumps(facts, allow_nan=False)
        stored = _storable(tensors)
        header = {"facts": text, "sha256": _tensor_digest(stored, text)}

        def write_to(temporary: Path) -> None:
            try:
                safetensors.torch.save_file(stored, temporary, metadata=header)
            except safetensors.SafetensorError as error:
                raise OSError(_one_line(error)) from error

        return write_atomically(path, write_to)

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors (on the CPU) and facts of a finished stage. Executes no code.

        Raises:
            RecordError: the stage is missing or its file damaged; says which file to delete.
        """
        path = self.file(stage)
        if not path.is_file():
            raise RecordError(f"{path}: expected the finished stage '{stage}', found no file; run that stage first")
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                header = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            facts = json.loads(header["facts"])
            whole = header["sha256"] == _tensor_digest(tensors, header["facts"])
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
            raise RecordError(
                f"{path}: expected the finished stage '{stage}', got a damaged file ({_one_line(error)}); "
                "delete it and run again"
            ) from None
        if not whole:
            raise RecordError(
                f"{path}: expected the finished stage '{stage}', got another checksum; delete it and run again"
            )
        return tensors, facts


# --- synthetic images -------------------------------------------------------------------------------------------------


def check_images(images: Tensor, labels: Tensor) -> None:
    """Images are (N, C, H, W), C 1 or 3, floating point in [0, 1]; labels are N whole numbers, 0 or more.

    Raises:
        RecordError: in one line, the first thing that is wrong.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point() or not images.numel():
        raise RecordError(
            "images: expected a floating-point tensor of shape (N, C, H, W) with C of 1 or 3, "
            f"got {images.dtype} of shape {tuple(images.shape)}; reshape or convert it"
        )
    if fault := pixel_fault(images):
        raise RecordError(f"images: {fault}")
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point() or labels.min().item() < 0:
        raise RecordError(
            f"labels: expected {len(images)} whole numbers of 0 or more, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}; give one class number per image"
        )


def save_images(
    path: Path, images: Tensor, labels: Tensor, statement: Mapping[str, Any], class_names: Sequence[str] = ()
) -> Path:
    """Write images with their labels and privacy statement as a compressed `.npz`, whole or not at all.

    The file holds `images`, uint8 of shape (N, H, W) or (N, H, W, 3); `labels`, int64 of shape (N,); `class_names`,
    texts of which label 0 is the first, where they are given; and `privacy`, the statement as JSON text.
    `dpldm.data.load_own` reads it, names included.

    Args:
        path: must end in `.npz`.
        images: (N, C, H, W), C 1 or 3, values in [0, 1].
        labels: (N,), class numbers.
        statement: what is claimed about privacy, as it can be written in JSON.
        class_names: one for each class, or none.

    Raises:
        RecordError: something is not as above.
        OSError: the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise RecordError(f"{path}: expected a file name that ends in .npz, got '{path.suffix}'; rename it")
    check_images(images, labels)
    _check_json("statement", statement)
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    arrays = {
        "images": pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        "labels": labels.detach().cpu().to(torch.int64).numpy(),
        "privacy": np.array(json.dumps(statement, sort_keys=True, allow_nan=False)),
    }
    if class_names:
        arrays["class_names"] = np.array(list(class_names), dtype=str)

    def write_to(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    return write_atomically(path, write_to)


def load_images(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read what `save_images` wrote. Executes no code: pickled objects are refused.

    Returns:
        Images, float32 of shape (N, C, H, W) in [0, 1]; labels, int64 of shape (N,); the privacy statement, empty
        where the file has none.

    Raises:
        RecordError: the file is not of that form.
        OSError: there is no such file, or it can't be read.
    """
    path = Path(path)
    expected = "expected a .npz with images, uint8 of shape (N, H, W) or (N, H, W, 3), and labels, N whole numbers"
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("a file that is not a zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                pixels, labels = np.asarray(archive["images"]), np.asarray(archive["labels"])
                statement = json.loads(str(archive["privacy"])) if "privacy" in archive else {}
        except Exception as error:  # whatever a damaged or foreign archive makes its readers raise
            raise RecordError(f"{path}: {expected}, got {_one_line(error)}; write it with dpldm sample") from None
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or not np.issubdtype(labels.dtype, np.integer):
        raise RecordError(
            f"{path}: {expected}, got {pixels.dtype} of shape {pixels.shape} and {labels.dtype}; convert it"
        )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255
    classes = torch.from_numpy(labels.astype(np.int64))
    try:
        check_images(images, classes)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if not isinstance(statement, dict):
        raise RecordError(f"{path}: expected a privacy statement in the form of an object, got {_shown(statement)}")
    return images, classes, statement
