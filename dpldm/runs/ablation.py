"""Each ingredient on and off: what it buys, measured on held-out training images. A join of methods and scores.

`run` measures the variations one after the other and keeps each at once, in one small file for a data set, ε, profile
and seed. The test set is not touched.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from dpldm import methods
from dpldm.data import datasets
from dpldm.records import environment, files, numbers, settings
from dpldm.runs import experiment, job, validation
from dpldm.runs.experiment import Folders
from dpldm.runs.variations import DEFAULT, SHARE, AblationError, Variation, variations

FOLDER = Path("runs/ablation")
HERE = Folders()
CLASSIFIERS = ("cnn", "mlp")
SCHEMA = 1
NOTE = "scored on held-out training images; these scores are not covered by the privacy guarantee"
_FILE = ("schema", "note", "dataset", "epsilon", "profile", "seed", "data_sha256", "settings", "rows")
_ROW = ("title", "method", "public_data", "scores", "digest", "differs", "device", "commit", "versions")
SCORES = (*CLASSIFIERS, "fid_classifier", "error", "dim", "fit", "seconds")


def _settings(variation: Variation, told: Callable[[Any], dict[str, Any]] = settings.to_json) -> dict[str, Any]:
    """All that decides a row, with dotted names; ``told`` makes a dictionary of a dataclass."""
    asked = variation.experiment.resolved()
    assert asked.settings is not None
    assert asked.evaluation is not None
    facts: dict[str, Any] = {"method": asked.method, "epsilon": asked.epsilon, "delta": asked.delta}
    facts |= {
        "n_synthetic": asked.n_synthetic,
        "limit": methods.PROFILES[asked.profile].limit,
        "held_out": SHARE,
        "classifiers": CLASSIFIERS,
    }
    nested = {"evaluation": told(asked.evaluation), "synthesis": told(asked.settings)}
    return _flat(json.loads(json.dumps(facts | {"reconstructs": variation.reconstructs} | nested)))


def _difference(variation: Variation, base: Variation) -> dict[str, Any]:
    """What is otherwise than in ``base``, defaults that records leave out among it."""
    was = _settings(base, asdict)
    return {key: value for key, value in _settings(variation, asdict).items() if was.get(key, ()) != value}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _digests(seed: int, sums: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """What a row has to carry to be one of these settings, of this seed and of these data."""
    texts = {name: json.dumps([SCHEMA, seed, sums, chosen], sort_keys=True) for name, chosen in settings.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


# --- measuring --------------------------------------------------------------------------------------------------------


def file_name(dataset: str, epsilon: float, profile: str, seed: int) -> str:
    """
    >>> file_name("mnist", 10.0, "quick", 0)
    'mnist-eps10-quick-seed0.json'
    """
    return f"{dataset}-eps{epsilon:g}-{profile}-seed{seed}.json"


def run(
    dataset: str,
    epsilon: float,
    seed: int = 0,
    profile: str = "quick",
    folders: Folders = HERE,
    only: Sequence[str] = (),
    folder: Path = FOLDER,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure the variations that have no row yet, and write the file anew after each.

    Args:
        only: names of `variations`; empty for all of them. folders: where the data are.
        folder: of the file. force: measure what has a row too. say: told what is being done, line by line.

    Returns:
        What the file holds. Rows of other settings than those of today are left out of it.

    Raises:
        ValueError: something can't work; before any work.
    """
    wanted = variations(dataset, epsilon, profile, seed)
    for name in only:
        if name not in wanted:
            raise AblationError(f"no variation {name!r} here: expected {', '.join(wanted)}")
    job.check(wanted[DEFAULT].experiment, folders)
    files.check_writable(folder)
    path, sums = (
        folder / file_name(dataset, epsilon, profile, seed),
        datasets.load(dataset, "train", folders.data).sha256,
    )
    settings = {name: _settings(variation) for name, variation in wanted.items()}
    digests = _digests(seed, sums, settings)
    known = read(path)["rows"] if path.exists() else {}
    rows = {name: row for name, row in known.items() if row["digest"] == digests.get(name)}
    place = (SCHEMA, NOTE, dataset, epsilon, profile, seed, sums, settings[DEFAULT], rows)
    made: dict[str, Any] = dict(zip(_FILE, place, strict=True))
    if dropped := [name for name in known if name not in rows]:
        say(f"of other settings than today's, so left out: {', '.join(dropped)}")
        _write(made, path)
    todo = [name for name in wanted if (not only or name in only) and (force or name not in rows)]
    for number, name in enumerate(todo, 1):
        say(f"{name}: {wanted[name].title}, {number} of {len(todo)}")
        differs = _difference(wanted[name], wanted[DEFAULT])
        rows[name] = _measure(wanted[name], folders) | {"digest": digests[name], "differs": differs}
        made["rows"] = {name: rows[name] for name in wanted if name in rows}
        _write(made, path)
        scores = rows[name]["scores"]
        say(f"{name}: CNN {scores['cnn']:.1%}, {numbers.duration(scores['seconds'])}")
    return made


def _measure(variation: Variation, folders: Folders) -> dict[str, Any]:
    asked, start = variation.experiment, time.monotonic()
    score = validation.validate(asked, folders, CLASSIFIERS, SHARE, fid=True, reconstruct=variation.reconstructs)
    scores: dict[str, Any] = {kind: round(value, 6) for kind, value in score.accuracies.items()}
    scores |= {"fid_classifier": score.fid_classifier, "error": score.reconstruction_error, "dim": score.dim}
    scores |= {"fit": round(score.seconds, 1), "seconds": round(time.monotonic() - start, 1)}
    said = {"title": variation.title, "method": asked.method, "public_data": score.public_data, "scores": scores}
    return said | environment.environment_facts(experiment.choose_device(asked.device).type)


def _write(made: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """One file of `run`.

    Raises:
        AblationError: it is none, or not whole; says what to do.
        OSError: there is no such file.
    """
    try:
        made: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        whole = set(made) == set(_FILE) and made["schema"] == SCHEMA
        whole &= all(set(row) == set(_ROW) and set(row["scores"]) == set(SCORES) for row in made["rows"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise AblationError(f"{path}: expected what dpldm ablation has written: restore the file, or delete and repeat")
    return made


def read_all(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All files of a folder; none where it is missing."""
    return [read(path) for path in sorted(Path(folder).glob("[!.]*.json"))]


def of_today(made: Mapping[str, Any]) -> dict[str, Any]:
    """A file of `run` without the rows that were measured with other settings than those of today; without any row if
    the default is among them, as there is nothing to compare the others with."""
    wanted = variations(made["dataset"], made["epsilon"], made["profile"], made["seed"])
    settings = {name: _settings(variation) for name, variation in wanted.items()}
    digests = _digests(made["seed"], made["data_sha256"], settings)
    rows = {name: row for name, row in made["rows"].items() if row["digest"] == digests.get(name)}
    return {**made, "rows": rows if DEFAULT in rows else {}}


def table(files: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Files of `run` as a frame, a row for each variation and seed.

    Returns:
        `dataset`, `epsilon`, `profile`, `seed`, `name`, `title`, `public_data` (empty for none), accuracies `cnn` and
        `mlp` in [0, 1], `fid_classifier`, `error` of stage 1 per pixel, `dim`, seconds of the `fit` and in all
        (`seconds`); NaN for what was not measured.
    """
    shared, told = ["dataset", "epsilon", "profile", "seed"], ["name", "title", "public_data"]
    rows = [
        {key: made[key] for key in shared} | row | row["scores"] | {"name": name}
        for made in files
        for name, row in made["rows"].items()
    ]
    frame = pd.DataFrame(rows, columns=[*shared, *told, *SCORES]).astype(dict.fromkeys(SCORES, float))
    return frame.assign(public_data=frame["public_data"].fillna(""))


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """What each variation does, over all seeds.

    Args:
        frame: from `table`.

    Returns:
        A row for each `dataset`, `epsilon`, `profile` and `name`, in the order of `table`, with `title`, `public_data`,
        `seeds` and, for s in "cnn", "mlp" and "fid_classifier": the mean s, `s_spread` (one standard deviation over
        seeds), `s_values` (a tuple), `s_gain` (mean difference from the default of the same seed) and `s_gain_spread`.
        NaN where there is nothing to compare with, or one seed only. `dim` and `seconds` are means.
    """
    place, scores = ["dataset", "epsilon", "profile"], [*CLASSIFIERS, "fid_classifier"]
    base = frame[frame["name"] == DEFAULT].set_index([*place, "seed"])[scores]
    gains = frame[scores] - base.reindex(pd.MultiIndex.from_frame(frame[[*place, "seed"]])).to_numpy()
    found = []
    for key, group in frame.join(gains.add_suffix("_gain")).groupby([*place, "name"], sort=False):
        row = dict(zip([*place, "name"], key, strict=True)) | {"seeds": len(group)}
        row |= {column: group[column].iloc[0] for column in ("title", "public_data")}
        row |= {f"{score}_values": tuple(group[score].dropna()) for score in scores}
        for column in (*scores, *(f"{score}_gain" for score in scores)):
            row |= {column: group[column].mean(), f"{column}_spread": group[column].std()}
        found.append(row | {column: group[column].mean() for column in ("dim", "seconds")})
    parts = [f"{score}{part}" for score in scores for part in ("", "_spread", "_values", "_gain", "_gain_spread")]
    columns = [*place, "name", "title", "public_data", "seeds", *parts, "dim", "seconds"]
    return pd.DataFrame(found, columns=columns)
