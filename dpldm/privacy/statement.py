"""What a record claims about privacy, checked against its own mechanisms, and said in words."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from dpldm.privacy.accounting import Ledger, replace_one_epsilon, with_more_epochs
from dpldm.privacy.budget import budget_shares
from dpldm.privacy.checks import PrivacyError, is_number, require
from dpldm.privacy.mechanisms import FIRST_STAGE, Mechanism, PrivacySpec

RELATION = "add or remove one image with its label"
PUBLIC = (
    "number of images",
    "image shape",
    "value range [0, 1]",
    "number and names of the classes",
    "settings of the run",
)


# ---------------------------------------------------------------------------------------------------------------------
# Records and statements


def to_record(spec: PrivacySpec, ledger: Ledger) -> dict[str, Any]:
    """The ``privacy`` object of a run's record, computed from the ledger.

    ``epsilon`` and ``epsilon_rdp`` are None when infinite, and also for an empty ledger, which proves nothing.

    Raises:
        PrivacyError: the ledger spends more than ``spec.epsilon``.
    """
    spent, spent_rdp = ledger.spent(spec.delta), ledger.epsilon(spec.delta, "rdp")
    if spec.epsilon is not None and spent.epsilon > spec.epsilon:
        raise PrivacyError(f"the run spent epsilon={spent.epsilon:.6g}, more than the target {spec.epsilon:.6g}")
    known = bool(ledger.mechanisms) and math.isfinite(spent.epsilon)
    return {
        "epsilon_target": spec.epsilon,
        "epsilon": spent.epsilon if known else None,
        "epsilon_rdp": spent_rdp if known else None,
        "delta": spec.delta,
        "relation": RELATION,
        "accountant": spent.accountant,
        "secure_mode": spec.secure_mode,
        "mechanisms": [asdict(mechanism) for mechanism in ledger.mechanisms],
    }


def from_record(record: Mapping[str, Any]) -> Ledger:
    """The ledger of a record's ``privacy`` object, checked entry by entry.

    Raises:
        PrivacyError: another relation, missing or unknown keys, or values outside their ranges.
    """
    require(isinstance(record, Mapping) and "mechanisms" in record, "a privacy record with 'mechanisms'", record)
    require(record.get("relation") == RELATION, f"relation {RELATION!r}", record.get("relation"))
    require(isinstance(record["mechanisms"], list), "a list of mechanisms", record["mechanisms"])
    names = {field.name for field in fields(Mechanism)}
    for entry in record["mechanisms"]:
        require(isinstance(entry, Mapping) and set(entry) == names, f"a mechanism with keys {sorted(names)}", entry)
    return Ledger(Mechanism(**entry) for entry in record["mechanisms"])


def check_claim(record: Mapping[str, Any]) -> None:
    """Compute ε again from the mechanisms of a record's ``privacy`` object; it takes a part of a second.

    Raises:
        PrivacyError: the record claims a smaller ε than its mechanisms spend, or they are not as they should be.
    """
    claimed = record.get("epsilon")
    if claimed is None:
        return
    spent = from_record(record).epsilon(record["delta"])
    if spent > claimed * (1 + 1e-6):
        raise PrivacyError(f"the record claims epsilon={claimed:g}, but its mechanisms spend {spent:g}")


_SETTINGS = {
    False: "Settings were fixed without a look at these images; other runs on them are charged on top.",
    True: (
        "This run alone is counted: settings were chosen on training images of this very data set, and scores on its "
        "test images were seen in between."
    ),
    None: (
        "Settings were fixed without a look at these images (those of MNIST and Fashion-MNIST were not); other runs on "
        "them are charged on top."
    ),
}


def statement(record: Mapping[str, Any], settings_saw_images: bool | None = None) -> dict[str, Any]:
    """What may be said about a release, from its ``privacy`` object: machine-readable, with plain words in ``claim``.

    ε is computed again from the mechanisms, so an edited record is not believed. Nor is one that charges stage 1 alone:
    a private encoder does not make the latents private (reading A of the paper).

    Args:
        record: a record's ``privacy`` object.
        settings_saw_images: whether settings were chosen by what they did on the very images; None if that is unknown.

    Returns:
        ``epsilon``, ``delta``, ``relation``, ``accountant``, ``sampling``, ``public``, ``mechanisms`` (names),
        ``noise`` ("secure", "seeded" or "unknown"), ``claim`` and ``assumptions`` (sentences).

    Raises:
        PrivacyError: ε is null, no mechanism or only stage 1 is listed, or ε is smaller than the mechanisms allow.
    """
    ledger = from_record(record)
    epsilon, delta = record.get("epsilon"), record.get("delta")
    if epsilon is None or not ledger.mechanisms:
        raise PrivacyError("this run is not differentially private (epsilon is null or no mechanism is listed)")
    if all(mechanism.stage == FIRST_STAGE for mechanism in ledger.mechanisms):
        raise PrivacyError(
            f"only stage {FIRST_STAGE!r} is charged: a private encoder does not make the latents private, and what is "
            "trained on them without a mechanism is not either; such a run can't be called private"
        )
    require(is_number(epsilon) and epsilon >= 0, "epsilon of 0 or more in the record", epsilon)
    if not isinstance(delta, float):
        raise PrivacyError(f"expected delta between 0 and 1 in the record, got {delta!r}")
    check_claim(record)
    noise = {True: "secure", False: "seeded"}.get(record.get("secure_mode", "?"), "unknown")
    return {
        "epsilon": epsilon,
        "delta": delta,
        "relation": RELATION,
        "accountant": record.get("accountant"),
        "noise": noise,
        "sampling": "Poisson: each image takes part in a step independently",
        "public": [*PUBLIC, *_said_of_the_images(record)],
        "mechanisms": [mechanism.name for mechanism in ledger.mechanisms],
        "claim": (
            f"Adding or removing any one image with its label raises the probability of any outcome by at most a "
            f"factor {_factor(epsilon)}, plus {delta:g}."
        ),
        "assumptions": [
            "Every use of the private images is one of the listed mechanisms.",
            "It protects single images, not everything one person contributed.",
            {
                "secure": "The noise is secret: it came from the operating system's cryptographic generator.",
                "seeded": (
                    "The noise is secret: it is NOT, since it follows from a seed of 32 bits; whoever has the result "
                    "can try them all and remove it, so this run protects nobody."
                ),
                "unknown": "The noise is secret: a run with a known seed protects nobody.",
            }[noise],
            "Noise and sums are floating point, an approximation of the real numbers of the proof.",
            _SETTINGS[settings_saw_images],
        ],
    }


def _said_of_the_images(record: Mapping[str, Any]) -> list[str]:
    return [f"kind of the images, as their owner said: {record['kind']}"] if "kind" in record else []


def _factor(epsilon: float) -> str:
    if epsilon < 700:
        return f"e^{epsilon:.4g} = {math.exp(epsilon):.4g}"
    return f"e^{epsilon:.4g}, about 10^{epsilon / math.log(10):.0f}"  # more than a float can hold


_ACCOUNTANTS = {"gaussian": "closed form", "prv": "PRV", "pld": "PLD", "rdp": "RDP", "none": "no accountant"}


def _by_accountants(ledger: Ledger, delta: float) -> list[str]:
    """ε as it is reported, with the name of who answered, and as the other accountants see it."""
    spent = ledger.spent(delta)
    said = [(f"{_ACCOUNTANTS[spent.accountant]} (reported)", f"{spent.epsilon:.4f} at δ = {delta:g}")]
    try:
        pld = f"{ledger.epsilon(delta, 'pld'):.4f} in steps of {ledger.pld_interval(delta):.2g}"
        said.append((f"PLD ({'the same' if spent.accountant == 'pld' else 'independent'})", pld))
    except PrivacyError as error:
        said.append(("PLD: not available here:", str(error)))
    if spent.accountant != "rdp":
        said.append(("RDP (looser)", f"{ledger.epsilon(delta, 'rdp'):.4f}"))
    return [f"ε by {name:<25}{value}" for name, value in said]


def in_words(record: Mapping[str, Any], settings_saw_images: bool | None = None) -> list[str]:
    """What a ``privacy`` object means, for people: lines with the claim, its assumptions, every mechanism with its
    share of the budget, ε by three accountants and under replaced images, and what one more epoch would cost.

    Args: as of `statement`.

    Raises:
        PrivacyError: as `statement`.
    """
    said, ledger = statement(record, settings_saw_images), from_record(record)
    delta = said["delta"]
    lines = [
        said["claim"],
        f"Neighbours: {said['relation']}. Sampling: {said['sampling']}. Public: {', '.join(said['public'])}.",
        "It holds if:",
        *(f"  - {assumption}" for assumption in said["assumptions"]),
        "Mechanisms, and their shares of the budget (of 1/σ²):",
    ]
    for mechanism, share in zip(ledger.mechanisms, budget_shares(ledger, delta), strict=True):
        lines.append(
            f"  {mechanism.stage:<12} {mechanism.name:<24}{share:4.0%}  "
            f"noise multiplier {mechanism.noise_multiplier:.4g}, sample rate {mechanism.sample_rate:.4g}, "
            f"{mechanism.steps} × sensitivity {mechanism.sensitivity:.4g}"
        )
    lines += [
        *_by_accountants(ledger, delta),
        f"ε if neighbours replace one image instead: at most {replace_one_epsilon(ledger, delta):.4f}",
    ]
    if any(mechanism.sample_rate < 1 for mechanism in ledger.mechanisms):
        lines.append(
            f"ε after one more epoch        {with_more_epochs(ledger, 1).epsilon(delta):.4f} at the same noise"
        )
    return lines
