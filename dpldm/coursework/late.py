"""Late days: how late each submission is, and what of its points is left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dpldm.coursework.masters import CourseworkError
from dpldm.coursework.submissions import Submission

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Policy:
    """When each assignment is due, and what being late costs.

    due: by name of the assignment; what has no entry is never late
    free_days: of each student, over all assignments, used from the first one on
    penalty: share of the points for each further day that was begun, 0 to 1
    """

    due: Mapping[str, datetime]
    free_days: int = 0
    penalty: float = 0.1


@dataclass(frozen=True)
class Lateness:
    """``days``: late, begun days count; ``free``: of these, paid with free days; ``factor``: of the points left."""

    days: int = 0
    free: int = 0
    factor: float = 1.0


def parse_due(words: Sequence[str], names: Sequence[str]) -> dict[str, datetime]:
    """Read `1-gaussian=2026-12-01T23:59` (UTC where no zone is given).

    Raises:
        CourseworkError: not of this form, or an unknown assignment.
    """
    due = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise CourseworkError(f"expected a date such as {names[0]}=2026-12-01T23:59, got {word!r}") from None
        if name not in names:
            raise CourseworkError(f"expected one of {', '.join(names)} before the =, got {name!r}")
        due[name] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return due


def lateness(found: Sequence[Submission], policy: Policy) -> dict[tuple[str, str], Lateness]:
    """How late each submission is, by (student, assignment)."""
    left: dict[str, int] = {}
    result = {}
    for submission in sorted(found, key=lambda each: (each.student, each.assignment.name)):
        name, student = submission.assignment.name, submission.student
        due = policy.due.get(name, submission.arrived)
        days = max(0, math.ceil((submission.arrived - due).total_seconds() / DAY))
        free = min(days, left.get(student, policy.free_days))
        left[student] = left.get(student, policy.free_days) - free
        result[student, name] = Lateness(days, free, max(0.0, 1 - policy.penalty * (days - free)))
    return result
