"""What every value of the privacy code is checked with, and the error it raises."""

import sys


class PrivacyError(ValueError):
    """A budget that can't be kept, a broken mechanism or record, or a claim the ledger does not support."""


def require(holds: bool, expected: str, got: object) -> None:
    """PrivacyError unless it holds: what was expected, what arrived."""
    if not holds:
        raise PrivacyError(f"expected {expected}, got {got!r}")


def is_number(value: object) -> bool:
    """Whether it is a finite number and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_whole(value: object) -> bool:
    """Whether it is a whole number and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)
