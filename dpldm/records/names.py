"""The name of a record: what defines its run, and a digest of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dpldm.records.schema import (
    POSITIVE,
    PRIVACY_ASKED,
    RECORD,
    RecordError,
    check_fields,
    check_json,
    is_list,
    shown_value,
)

_DEFINING = ("method", "dataset", "profile", "seed", "settings", "privacy", "public_data", "data_sha256")


def _canonical(value: Any) -> Any:
    """The same value in one spelling: 1.0 is 1, tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if is_list(value):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest_of(value: Any) -> str:
    """Eight letters that change when the value changes, whatever the order of its keys."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def definition(description: Mapping[str, Any]) -> dict[str, Any]:
    """What defines a run, out of a description or a whole record, checked; results are left out."""
    check_fields("", description, {key: RECORD[key] for key in _DEFINING})
    asked = description["privacy"]
    check_fields("privacy.", asked, PRIVACY_ASKED)
    noise_multiplier = asked.get("noise_multiplier")
    if noise_multiplier is not None and not (POSITIVE[1](noise_multiplier) and asked["epsilon_target"] is None):
        raise RecordError(
            "privacy.noise_multiplier: expected a finite number above 0 where epsilon_target is null, "
            f"got {shown_value(noise_multiplier)} with epsilon_target {shown_value(asked['epsilon_target'])}"
        )
    private = asked["epsilon_target"] is not None or noise_multiplier is not None
    defining = {key: description[key] for key in _DEFINING}
    defining["privacy"] = {
        "epsilon_target": asked["epsilon_target"],
        "noise_multiplier": noise_multiplier,
        "delta": asked["delta"] if private else None,
    }
    check_json("", defining)
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
    defining = definition(record)
    target, noise_multiplier = defining["privacy"]["epsilon_target"], defining["privacy"]["noise_multiplier"]
    epsilon = "none" if target is None else f"{target:g}"
    if noise_multiplier is not None:
        epsilon = f"_of_noise{noise_multiplier:g}"
    return (
        f"{defining['dataset']}-{defining['method']}-eps{epsilon}-{defining['profile']}"
        f"-seed{defining['seed']}-{digest_of(defining)}.json"
    )
