"""What a record has to look like: one JSON file that says what was asked for, what was measured, and on what."""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

CLASSIFIERS = ("cnn", "mlp", "logreg")
LEARNERS = ("knn", "forest", "boosting", "svm")  # beside those, in records since they are measured
JUDGES = ("forest", "cnn")  # of the two-sample tests, likewise
_ROUNDING = 1e-6  # relative; how far a sum of floating-point numbers may pass a limit


class RecordError(ValueError):
    """A record, stage or image file that is not what it should be. One line: expected, arrived, way out."""


Check = tuple[str, Callable[[Any], bool]]  # in words, and as a test


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    """JSON knows whole numbers of any length; what counts or measures anything fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def is_list(value: Any) -> bool:
    """Whether it is a list or a tuple."""
    return isinstance(value, list | tuple)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _or_null(check: Check) -> Check:
    words, test = check
    return f"{words}, or null", lambda value: value is None or test(value)


def in_names(letter: str) -> bool:
    """Whether names of records may have it: letters of any script with their marks, digits, '_', '.' and '-'."""
    return letter in "_.-" or unicodedata.category(letter)[0] in "LMN"


NAME: Check = (
    "a name of 1 to 48 letters, digits, '_', '.' or '-' that starts with a letter or digit",
    lambda value: isinstance(value, str) and 0 < len(value) <= 48 and value[0].isalnum() and all(map(in_names, value)),
)
_TEXT: Check = ("a text that is not empty", _is_text)
_OBJECT: Check = ("an object", _is_object)
POSITIVE: Check = ("a finite number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE: Check = ("a finite number, 0 or more", lambda value: _is_number(value) and value >= 0)
_FRACTION: Check = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_FRACTIONS: Check = (
    "a list of numbers from 0 to 1, one per classifier seed",
    lambda value: is_list(value) and all(_FRACTION[1](item) for item in value),
)
_CLASSES: Check = (
    "a list of numbers from 0 to 1 or nulls, one per class",
    lambda value: is_list(value) and all(item is None or _FRACTION[1](item) for item in value),
)
_DELTA: Check = ("a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
_COUNT: Check = ("a whole number, 1 or more", lambda value: _is_whole(value) and value >= 1)
# A Fréchet distance of two nearly equal sets may come out a hair below zero.
_DISTANCE: Check = ("a finite number, 0 or more", lambda value: _is_number(value) and value >= -1e-3)

RECORD: dict[str, Check] = {
    "schema": ("1", lambda value: _is_whole(value) and value == 1),
    "method": NAME,
    "dataset": NAME,
    "profile": NAME,
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
PRIVACY_ASKED: dict[str, Check] = {"epsilon_target": _or_null(POSITIVE), "delta": _or_null(_DELTA)}
_PRIVACY: dict[str, Check] = PRIVACY_ASKED | {
    "epsilon": _or_null(POSITIVE),
    "epsilon_rdp": _or_null(POSITIVE),
    "relation": _or_null(_TEXT),
    "accountant": _or_null(_TEXT),
    "mechanisms": ("a list of objects", lambda value: is_list(value) and all(_is_object(item) for item in value)),
}
_MECHANISM: dict[str, Check] = {
    "name": _TEXT,
    "stage": _TEXT,
    "noise_multiplier": _NOT_NEGATIVE,
    "sample_rate": ("a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "steps": _COUNT,
    "sensitivity": POSITIVE,
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
_OPTIONAL_METRICS: dict[str, Check] = {"parameters": _PARAMETERS} | dict.fromkeys(
    ("learners", "by_class", "two_sample", "peers"), _OBJECT
)
_PEERS: dict[str, Check] = {"accuracy": _OBJECT} | dict.fromkeys(("best", "mean"), _FRACTION)
_TWO_SAMPLE: dict[str, Check] = dict.fromkeys(("auc", "low", "high"), _FRACTION)
_SECONDS: dict[str, Check] = {
    stage: _or_null(_NOT_NEGATIVE) for stage in ("compression", "diffusion", "sampling", "evaluation")
}


def shown_value(value: Any) -> str:
    """A value on one short line, for an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_fields(where: str, values: Mapping[str, Any], fields: Mapping[str, Check], closed: bool = False) -> None:
    """Every field is there and passes its test; other keys are refused where `closed`."""
    for key, (words, test) in fields.items():
        if key not in values:
            raise RecordError(f"{where}{key}: expected {words}, got nothing")
        if not test(values[key]):
            raise RecordError(f"{where}{key}: expected {words}, got {shown_value(values[key])}")
    unknown = sorted(str(key) for key in values if key not in fields)
    if closed and unknown:
        raise RecordError(f"{where}{unknown[0]}: unknown key, expected only {', '.join(fields)}")


def check_json(where: str, value: Any) -> None:
    """The value can be written as strict JSON and read back as itself."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RecordError(f"{where}: expected texts as keys, got {shown_value(key)}")
            check_json(f"{where}.{key}" if where else key, item)
    elif is_list(value):
        for position, item in enumerate(value):
            check_json(f"{where}[{position}]", item)
    elif not (value is None or isinstance(value, str | bool) or _is_number(value)):
        raise RecordError(
            f"{where}: expected text, true, false, null, a finite number, a list or an object, got {shown_value(value)}"
        )


def _check_privacy(privacy: Mapping[str, Any]) -> None:
    check_fields("privacy.", privacy, _PRIVACY)
    for position, mechanism in enumerate(privacy["mechanisms"]):
        check_fields(f"privacy.mechanisms[{position}].", mechanism, _MECHANISM)
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


def _check_repeated(settings: Mapping[str, Any], privacy: Mapping[str, Any]) -> None:
    """Settings say how the noise was to be drawn and what was said of the images, privacy how it was and what is public
    by that; the name of the record covers the former only."""
    for key in ("secure_mode", "kind"):
        asked, stated = settings.get(key), privacy.get(key)
        if stated is not None and stated != asked:
            raise RecordError(
                f"privacy.{key}: expected {shown_value(asked)} as in the settings, got {shown_value(stated)}"
            )


def validate(record: Mapping[str, Any]) -> None:
    """Check a whole record: every key, its type and its range.

    A private run (`privacy.epsilon` a number) must name what was asked for, as `epsilon_target` or, where the noise was
    given instead, `noise_multiplier`; its ε is at most the target; its ledger is not empty. Other keys are refused at
    the top level and allowed below it. A list of accuracies may be empty: that classifier was not trained.

    Raises:
        RecordError: in one line, the first thing that is wrong.
    """
    if not _is_object(record):
        raise RecordError(f"expected an object with {', '.join(RECORD)}, got {shown_value(record)}")
    check_fields("", record, RECORD, closed=True)
    _check_privacy(record["privacy"])
    _check_repeated(record["settings"], record["privacy"])
    metrics = record["metrics"]
    optional = {key: check for key, check in _OPTIONAL_METRICS.items() if key in metrics}  # not in the oldest records
    check_fields("metrics.", metrics, _METRICS | optional)
    learners, accuracy = metrics.get("learners", {}), metrics["accuracy"]
    check_fields("metrics.learners.", learners, dict.fromkeys(learners, _FRACTIONS))
    classes = metrics.get("by_class", {})
    check_fields("metrics.by_class.", classes, dict.fromkeys(classes, _CLASSES))
    for name, measured in metrics.get("two_sample", {}).items():
        check_fields("metrics.two_sample.", {name: measured}, {name: _OBJECT})
        check_fields(f"metrics.two_sample.{name}.", measured, _TWO_SAMPLE)
    for name, measured in metrics.get("peers", {}).items():
        check_fields("metrics.peers.", {name: measured}, {name: _OBJECT})
        check_fields(f"metrics.peers.{name}.", measured, _PEERS)
    check_fields("metrics.accuracy.", accuracy, dict.fromkeys([*CLASSIFIERS, *accuracy], _FRACTIONS))
    seconds = record["seconds"]
    check_fields("seconds.", seconds, _SECONDS | dict.fromkeys(seconds, _or_null(_NOT_NEGATIVE)))
    check_json("", record)
