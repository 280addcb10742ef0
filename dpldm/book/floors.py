"""What two accountants say by themselves at a δ of the size of their own rounding → a table for the accounting page."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpldm.privacy.accounting import Ledger
from dpldm.privacy.mechanisms import Mechanism, gaussian_epsilon

_NEARLY_ALL = 1 - 1e-12  # of the images: too few for the closed form, too many for any difference
_ERROR_BAR = 0.02  # of ε, for Opacus: twice its own, in half the time


def one_gaussian(noise_multiplier: float, steps: int) -> Ledger:
    """A ledger of as many equal steps of DP-SGD that are together one Gaussian in all but name.

    >>> one_gaussian(1.0, 400).mechanisms[0].noise_multiplier
    20.0
    """
    return Ledger([Mechanism("a step", "example", noise_multiplier * math.sqrt(steps), _NEARLY_ALL, steps)])


def against_delta(noise_multiplier: float, steps: int, deltas: Sequence[float]) -> pd.DataFrame:
    """ε of `one_gaussian` by three accountants left to themselves, and in closed form.

    Args:
        noise_multiplier: of the one Gaussian, above 0.
        steps: 1 or more.
        deltas: in (0, 1).

    Returns:
        A row for each δ: ``delta``, ``exact``, ``PRV`` (Opacus, the upper end of its error bar), ``PLD``
        (dp-accounting, at its own interval) and ``RDP``; NaN where an accountant refuses or finds no finite ε.
    """
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant
    from opacus.accountants import PRVAccountant

    ledger = one_gaussian(noise_multiplier, steps)
    (step,) = ledger.mechanisms
    prv, pld = PRVAccountant(), PLDAccountant()
    prv.history = [(step.noise_multiplier, step.sample_rate, steps)]
    gaussian = dp_event.GaussianDpEvent(step.noise_multiplier)
    pld.compose(dp_event.PoissonSampledDpEvent(step.sample_rate, gaussian), steps)

    def by_prv(delta: float) -> float:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                return float(prv.get_epsilon(delta, eps_error=_ERROR_BAR))
            except (ValueError, RuntimeError):
                return math.nan

    rows = [
        (delta, gaussian_epsilon(noise_multiplier, delta), by_prv(delta), pld.get_epsilon(delta),
         ledger.epsilon(delta, "rdp"))
        for delta in deltas
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["delta", "exact", "PRV", "PLD", "RDP"]).replace(math.inf, math.nan)
