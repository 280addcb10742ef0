"""Which record is of an experiment: what defines a run, told by its record and by its description."""

import hmac
import itertools
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpldm.data import datasets
from dpldm.data.images import ImageData
from dpldm.evaluation.settings import EvaluationSettings
from dpldm.methods import METHODS, PROFILES, Synthesizer
from dpldm.records import files, names, schema
from dpldm.records.files import locked
from dpldm.records.settings import SettingsError, from_json, to_json
from dpldm.runs.experiment import Experiment, ExperimentError, Folders, limit_of


def describe(
    experiment: Experiment, train: ImageData, test: ImageData | None, synthesizer: Synthesizer, folders: Folders
) -> dict[str, Any]:
    """What defines the run, in the form of a record."""
    own = isinstance(experiment.dataset, Path)
    return _asked(experiment, scored=test is not None) | {
        "dataset": _own_name(train.name) if own else train.name,
        "public_data": getattr(getattr(synthesizer, "compressor", None), "public_data", None),
        "data_sha256": _own_sums(train, test, folders) if own else train.sha256 | (test.sha256 if test else {}),
    }


def _asked(experiment: Experiment, scored: bool) -> dict[str, Any]:
    """What defines the run of a resolved experiment but its data, in the form of a record."""
    assert experiment.settings is not None
    assert experiment.evaluation is not None
    spec = experiment.spec
    asked: dict[str, Any] = {"epsilon_target": spec and spec.epsilon, "delta": spec and spec.delta}
    if spec is not None and spec.noise_multiplier is not None:
        asked["noise_multiplier"] = spec.noise_multiplier
    return {
        "schema": 1,
        "method": experiment.method,
        "profile": experiment.profile,
        "seed": experiment.seed,
        "settings": {
            "synthesis": to_json(experiment.settings),
            "evaluation": to_json(experiment.evaluation) if scored else None,
            "n_synthetic": experiment.n_synthetic,
            "limit": limit_of(experiment),
            "secure_mode": experiment.secure_mode,
            **({} if experiment.kind == "none" else {"kind": experiment.kind}),
            **({} if experiment.resize is None else {"resize": experiment.resize}),
        },
        "privacy": asked,
    }


def choose(records: Iterable[Mapping[str, Any]], experiment: Experiment) -> Mapping[str, Any] | None:
    """The record of exactly this run: same in all that decides one, settings included; None where it is not there.

    Method, data set, profile, seed and ε alone may fit several records, of which all but one are another run's.

    Args:
        experiment: on one of `dpldm.data.datasets.DATASETS`, which nobody has to load for this.

    Raises:
        ExperimentError: two fit, because they are of different files under the name of one data set.
    """
    found = {names.record_name(record): record for record in records if _is_of(record, experiment)}
    if len(found) > 1:
        raise ExperimentError(f"expected one record of the run, got {' and '.join(found)}: keep one of them")
    return next(iter(found.values()), None)


def made_today(record: Mapping[str, Any]) -> bool:
    """Whether the record is of a run as `dpldm run` makes it today of a known data set: with the settings that its
    method has in its profile at that ε, so without what a variant changes."""
    method, profile, asked = record["method"], record["profile"], record["privacy"]
    known = method in METHODS and profile in PROFILES and record["dataset"] in datasets.DATASETS
    if not known or (asked["epsilon_target"] is not None and not METHODS[method].private):
        return False
    now = Experiment(record["dataset"], asked["epsilon_target"], method=method, profile=profile, seed=record["seed"])
    return _is_of(record, now)


def experiment_of(record: Mapping[str, Any], device: str = "auto") -> Experiment:
    """The run that a record is of, to be made again; of a known data set.

    Raises:
        ExperimentError: it is of your own images; or what the settings mean has changed since.
    """
    settings, asked = record["settings"], record["privacy"]
    if record["dataset"] not in datasets.DATASETS:
        raise ExperimentError(f"{record['dataset']}: expected a run of a public data set: your own are not in a record")
    try:
        found = Experiment(
            record["dataset"],
            asked["epsilon_target"],
            asked.get("noise_multiplier"),
            asked["delta"] or Experiment.delta,
            settings["secure_mode"],
            record["method"],
            record["profile"],
            record["seed"],
            from_json(METHODS[record["method"]].settings, settings["synthesis"]),
            from_json(EvaluationSettings, settings["evaluation"]),
            settings["n_synthetic"],
            device=device,
        )
        same = _is_of(record, found)
    except (SettingsError, ExperimentError, KeyError):
        same = False
    if not same:
        raise ExperimentError(
            f"{names.record_name(record)}: expected settings of a run of this version, got those of another: make it "
            "with that version"
        )
    return found


def _is_of(record: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the record has the name that this run would have on the record's files; what is public data follows from
    the settings."""
    asked = _asked(experiment.resolved(), scored=True)
    files = {key: record[key] for key in ("data_sha256", "public_data")} | {"dataset": experiment.dataset}
    return names.record_name(asked | files) == names.record_name(record)


def _own_name(name: str) -> str:
    """Never the name of a public data set, always a good file name: of at most 48 letters, of whatever script, and 144
    bytes."""
    runs = itertools.groupby(unicodedata.normalize("NFC", name), schema.in_names)
    short = "own-" + "".join("".join(letters) if kept else "-" for kept, letters in runs)
    return short[:48].encode()[:144].decode(errors="ignore")


def _own_sums(train: ImageData, test: ImageData | None, folders: Folders) -> dict[str, str]:
    """Checksums of private files, keyed with a secret that stays in the folder of runs.

    A plain SHA-256 in a published record would tell whoever guesses the private images whether the guess is right,
    which no ε allows.
    """
    sums = {f"{name} (keyed)": value for name, value in train.sha256.items()}
    sums |= {f"{name} (test, keyed)": value for name, value in (test.sha256 if test else {}).items()}
    secret = _secret(folders.runs)
    return {name: hmac.new(secret, value.encode(), "sha256").hexdigest() for name, value in sums.items()}


def _secret(runs: Path) -> bytes:
    path = runs / ".secret"
    if not path.exists():
        files.check_writable(runs)
        runs.mkdir(parents=True, exist_ok=True)
        with locked(runs / ".secret.lock"):
            if not path.exists():
                files.write_atomically(path, lambda temporary: temporary.write_bytes(secrets.token_bytes(32)))
                path.chmod(0o600)
    return path.read_bytes()
