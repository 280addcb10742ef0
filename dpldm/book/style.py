"""How every figure looks.

Every figure is a light card with dark text, whatever page it stands on and whatever style the reader has set: no
grey is readable enough on both white and near-black. Colours keep a contrast of at least 3 : 1 with the card, stay
apart for colour-blind readers, and never carry a meaning alone: markers and line styles differ too.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import seaborn
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dpldm.records.grids import CARD, INK

EDGE = "#c8c8c4"
PALETTE = ("#0072b2", "#d55e00", "#008a66", "#b8558f", "#6b4c1e", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
PUBLISHED: dict[str, Any] = {
    "color": "#555555", "markerfacecolor": CARD, "linestyle": ":", "linewidth": 0.8, "markersize": 7,
}  # fmt: skip
PUBLISHED_MARKERS = ("X", "*", "p", "h", "<", ">", "d", "8", "H", "1", "2", "3")
METHODS = (
    "dpldm",
    "class-gaussian",
    "dp-merf",
    "dp-sinkhorn",
    "dpdm",
    "real",
    "gs-wgan",
    "reading-b",
    "non-private",
)  # keep their colours in every figure, whatever stands beside them
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
SCORES = {
    "cnn": "test accuracy of a CNN (%)",
    "mlp": "test accuracy of an MLP (%)",
    "logreg": "test accuracy of logistic regression (%)",
    "fid_classifier": "FID, classifier features",
    "fid_inception": "FID, Inception features",
}
_RC = {
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlesize": 10.5, "axes.labelsize": 10,
    "axes.titlelocation": "left", "axes.facecolor": CARD, "axes.edgecolor": INK, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "grid.color": EDGE, "grid.linewidth": 0.6,
    "figure.facecolor": CARD, "figure.edgecolor": EDGE, "savefig.facecolor": CARD, "font.size": 9.5,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 6,
}  # fmt: skip


@contextmanager
def card_style() -> Iterator[None]:
    """seaborn's grid and the look above, whatever the reader has set; also a decorator. Undone at the end."""
    with matplotlib.style.context(["default", seaborn.axes_style("whitegrid") | _RC]):
        yield


class Card(Figure):
    """A matplotlib Figure on its own light ground; as the last line of a notebook cell it shows itself, once."""

    @card_style()
    def draw(self, renderer: Any) -> None:  # ticks are made as late as this
        super().draw(renderer)

    @card_style()
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=144, edgecolor=EDGE)
        return buffer.getvalue()


def card(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    share_y: Literal["row", "none"] = "none",
    widths: Sequence[float] | None = None,
) -> tuple[Card, np.ndarray]:
    """An empty card of `width` × `height` inches and its axes, (rows, columns); `widths` of the columns, relative."""
    figure = Card(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), linewidth=1.0)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y, width_ratios=widths)


def decimal(number: float) -> str:
    """A number as readers write it.

    >>> decimal(1e-5), decimal(10.0)
    ('0.00001', '10')
    """
    return np.format_float_positional(number, trim="-")


def captioned(frame: pd.DataFrame | pd.Series, caption: str) -> HTML:
    """A frame as an HTML table under a caption that says what its rows and numbers are; – for what is missing.

    Raises:
        ValueError: an empty caption.
    """
    if not caption.strip():
        raise ValueError("caption: expected a sentence on what the table shows, got none; write one")
    whole = frame.to_frame() if isinstance(frame, pd.Series) else frame
    text = whole.to_html(border=0, na_rep="–")
    return HTML(text.replace("<thead>", f"<caption>{html.escape(caption)}</caption>\n  <thead>", 1))


def as_html(figure: Figure, alternative: str) -> str:
    """A figure as an HTML image with its text alternative, for pages that show what another page computed.

    Args:
        figure: made by this module.
        alternative: what the figure shows, in a sentence, for those who don't see it.

    Raises:
        ValueError: no text, or a figure of another making.
    """
    if not alternative.strip() or not isinstance(figure, Card):
        raise ValueError("expected a figure of dpldm.plots and a sentence on what it shows; give both")
    pixels = base64.b64encode(figure._repr_png_()).decode()
    text = html.escape(alternative, quote=True)
    width = round(96 * figure.get_figwidth())
    return f'<img src="data:image/png;base64,{pixels}" alt="{text}" style="width: {width}px; max-width: 100%">'
