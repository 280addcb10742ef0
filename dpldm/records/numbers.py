"""Numbers as people write them."""

import math

import numpy as np


def plain(value: float, digits: int = 3) -> str:
    """A number to so many digits, written out.

    >>> plain(1000.0), plain(0.2), plain(12345.678, 7), plain(1e-5)
    ('1000', '0.2', '12345.68', '0.00001')
    """
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def duration(seconds: float) -> str:
    """Seconds for people; NaN for what was not measured.

    >>> duration(3.21), duration(42.4), duration(75.4)
    ('3.2 s', '42 s', '1 min 15 s')
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
