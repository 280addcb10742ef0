"""Which scores a record lacks, because it is older than they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpldm.evaluation.inception import find_inception_weights
from dpldm.evaluation.protocol import missing_parts
from dpldm.evaluation.settings import EvaluationSettings
from dpldm.records.settings import from_json
from dpldm.runs.words import JUDGES, LEARNERS

PART = {f"two_sample_{judge}": f"the two-sample test by the {name}" for judge, name in JUDGES.items()} | {
    "memorisation": "the share of copies",
    "fid_inception": "the FID by Inception features",
}


def lacking(record: Mapping[str, Any]) -> list[str]:
    """The parts of `dpldm.evaluation.protocol.PARTS` to add to a record; none to one that was not scored.

    The FID by Inception features counts only where the file of its weights is there.

    Raises:
        SettingsError: its settings of the evaluation are another version's.
        ValueError: a file of weights was named but is not there, or is another.
    """
    asked = record["settings"]["evaluation"]
    if asked is None:
        return []
    return missing_parts(record["metrics"], from_json(EvaluationSettings, asked), find_inception_weights())


def in_words(parts: Sequence[str]) -> str:
    """Parts of an evaluation as readers call them.

    >>> in_words(["knn", "memorisation"])
    'the accuracy of 3-NN, the share of copies'
    """
    learners = [LEARNERS[part] for part in parts if part in LEARNERS]
    told = [f"the accuracy of {', '.join(learners)}"] if learners else []
    return ", ".join(told + [PART[part] for part in parts if part in PART])
