"""Settings ↔ JSON: what records, saved models and digests keep of frozen dataclasses."""

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar


class SettingsError(ValueError):
    """Settings in a file that are not what they should be. One line: expected, arrived, way out."""


Settings = TypeVar("Settings")


def to_json(settings: Any) -> dict[str, Any]:
    """A frozen dataclass, and those in it, as a dictionary for records and digests.

    A field with ``unless_default`` in its metadata is left out where it has its default, which has to be what was done
    before the field was there: so what was made then keeps its digest, its name and its seed.
    """
    kept = {}
    for described in fields(settings):
        value = getattr(settings, described.name)
        if "unless_default" not in described.metadata or value != described.default:
            kept[described.name] = to_json(value) if is_dataclass(value) else value
    return kept


def from_json(kind: type[Settings], value: Any, where: str = "settings") -> Settings:
    """A frozen dataclass, and those in it, back from what `to_json` made of it.

    >>> from dpldm.method.settings import SamplingSettings
    >>> from_json(SamplingSettings, {"sampler": "churn", "steps": 8, "guidance": 1.0, "batch": 100}).sampler
    'churn'
    >>> from_json(SamplingSettings, {"stepps": 8})
    Traceback (most recent call last):
    dpldm.records.settings.SettingsError: settings: unknown key 'stepps', expected sampler, steps, guidance, batch

    Raises:
        SettingsError: an unknown or missing key, or a value of another type.
        ValueError: a value that the dataclass refuses.
    """
    assert is_dataclass(kind)
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where}: expected an object with {', '.join(names)}, got {value!r}")
    for key in value:
        if key not in names:
            raise SettingsError(f"{where}: unknown key {key!r}, expected {', '.join(names)}")
    hints = typing.get_type_hints(kind)
    for described in fields(kind):
        if described.name not in value and "unless_default" not in described.metadata:
            raise SettingsError(f"{where}: expected a value for {described.name}, got none (made by another version?)")
    read = {name: _typed(hints[name], given, f"{where}.{name}") for name, given in value.items()}
    return typing.cast(Settings, kind(**read))


def _typed(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):  # a type or null
        if value is None:
            return None
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if is_dataclass(kind):
        return from_json(typing.cast(type[Any], kind), value, where)
    wanted: Iterable[type] = {float: (float, int)}.get(kind, (kind,))
    if type(value) not in wanted:
        raise SettingsError(f"{where}: expected {kind.__name__}, got {value!r}")
    return kind(value)
