"""What a long computation is doing, told while it works: by a notebook's kernel to the build that waits for it.

The build names a file in an environment variable; the kernel writes there how far it is, and a thread of the build
reads it every few seconds. Without the variable nothing is written.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "DPLDM_PROGRESS"  # the file's path
EVERY = 15.0  # seconds between two lines
_SELDOM = 1.0  # seconds between two notes
_last_note = 0.0


def note(stage: str, share: float) -> None:
    """Write down that a share (0 to 1) of a stage is done, for a build that waits; at most once a second."""
    global _last_note
    path, now = os.environ.get(VARIABLE), time.monotonic()
    if path and (now - _last_note >= _SELDOM or share >= 1):
        _last_note = now
        try:
            Path(path).write_text(f"{stage} {share:.0%}", encoding="utf-8")
        except OSError:  # the build no longer waits: the work is not lost for that
            return


class Heartbeat:
    """A context in which one line is said every few seconds: where in the notebook the work is, and since when.

    Args:
        name: of the notebook. cells: how many it has.
        path: of the file for `note`, deleted at the end.
        say: told each line, from another thread.
    """

    def __init__(self, name: str, cells: int, path: Path, say: Callable[[str], None]) -> None:
        self.name, self.cells, self.path, self.say = name, cells, Path(path), say
        self.place, self.heading, self.start = "starting", "", time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name=f"heartbeat of {name}", daemon=True)

    def cell_started(self, cell: Any, cell_index: int) -> None:
        """A hook of nbclient: this cell is next, be it code or text."""
        self.path.unlink(missing_ok=True)
        heads = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
        if cell.cell_type == "markdown" and heads:
            self.heading = f" ({heads[-1]})"
        self.place = f"cell {cell_index + 1} of {self.cells}{self.heading}"

    def line(self) -> str:
        """What is being done now, in one line."""
        try:
            noted = f", {self.path.read_text(encoding='utf-8')}"
        except OSError:
            noted = ""
        return f"{self.name}: {self.place}{noted}, {time.monotonic() - self.start:.0f} s so far"

    def _beat(self) -> None:
        while not self.ended.wait(EVERY):
            self.say(self.line())

    def __enter__(self) -> "Heartbeat":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()
        self.path.unlink(missing_ok=True)
