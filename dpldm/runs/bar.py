"""How far a run is, on the terminal."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def progress_bar() -> Any:
    """A bar with the time left on a terminal, otherwise only lines; a context, in which it is a `Progress`."""
    from contextlib import contextmanager

    from tqdm import tqdm

    from dpldm.runs.experiment import Progress

    class Lines(Progress):
        def say(self, line: str) -> None:
            print(line, file=sys.stderr, flush=True)

    class Bar(Progress):
        stage, bar = "", None

        def say(self, line: str) -> None:
            tqdm.write(line, file=sys.stderr)

        def track(self, stage: str, share: float) -> None:
            if self.bar is None or stage != self.stage:
                self.close()
                look = "{desc:<12} {percentage:3.0f}% |{bar}| {remaining} left"
                self.stage, self.bar = stage, tqdm(total=1.0, desc=stage, leave=False, bar_format=look)
            self.bar.update(share - self.bar.n)
            if share >= 1:
                self.close()

        def close(self) -> None:
            if self.bar is not None:
                self.bar.close()
            self.bar = None

    @contextmanager
    def context() -> Any:
        progress: Progress = Bar() if sys.stderr.isatty() else Lines()
        try:
            yield progress
        finally:
            if isinstance(progress, Bar):
                progress.close()

    return context()
