"""Ctrl-C and SIGTERM as a wish: the step under way ends, the run is saved, and then it stops."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within the `with` block the first signal is noted in `requested`, a second one told that it was heard already.

    A scheduler may signal a job and its launcher, which passes the signal on: two are one wish. A third one acts at
    once, as it always did.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, active: bool = True) -> None:
        # Python allows handlers in the main thread alone.
        self.active = active and threading.current_thread() is threading.main_thread()
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self.active:
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number).name
            return
        os.write(2, b"repro: saving already; one more signal stops at once, without\n")  # `print` may be under way
        self._restore()

    def _restore(self) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
        self._before = {}
