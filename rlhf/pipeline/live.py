"""A run in a terminal: a line for each stage, redrawn as it goes on, with what stages print above them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.pipeline.plan import Plan
from rlhf.pipeline.view import Quiet, View, counted, figures, innermost, seconds_left
from rlhf.progress import Snapshot

_BAR = 20
_STYLES = {"done": "green", "failed, see above": "red", "stopped": "yellow", "waiting": "dim", "done before": "dim"}


class _Row:
    """What is known of one stage."""

    def __init__(self, stage: str, state: str) -> None:
        self.stage, self.state = stage, state
        self.seconds: float | None = None
        self.snapshot: Snapshot | None = None


class LiveView(View):
    """Shows a run on a terminal that can be redrawn.

    Args:
        console: Writes to it.
    """

    redraws = True

    def __init__(self, console: Console) -> None:
        super().__init__(self._say)
        self.console = console
        self.rows: dict[str, _Row] = {}
        self._live: Live | None = None
        self._read = 0
        """Bytes of the stages' output that are shown."""
        self._cut = b""
        """The beginning of a line that has not ended."""

    def __enter__(self) -> LiveView:
        super().__enter__()
        self._live = Live(console=self.console, auto_refresh=False, get_renderable=self.render)
        self._live.start()
        self.console.show_cursor(True)  # hidden, it would stay so where this process is killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stage is not None and kind is not None:
            interrupted = issubclass(kind, KeyboardInterrupt)
            row, self.stage = self.rows[self.stage], None
            row.state, row.seconds = "stopped" if interrupted else "failed, see above", time.monotonic() - self.began
        self._drain(whole=True)
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None
        super().__exit__(kind, error, trace)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """What is started inside the block prints to the file whose lines are shown above the view."""
        own = {stream: os.dup(stream) for stream in (1, 2)}
        self.watch().take_output()
        try:
            yield
        finally:
            for stream, copy in own.items():
                os.dup2(copy, stream)
                os.close(copy)

    def planned(self, plans: Sequence[Plan]) -> None:
        """Which stages run; why is said above them."""
        for plan in plans:
            if plan.reason or plan.note:
                self.say(f"{plan.stage}: {plan.reason or 'done'}{plan.note}")
            self.rows[plan.stage] = _Row(plan.stage, "waiting" if plan.reason else "done before")
        self._redraw()

    def checks(self, stage: str | None = None) -> None:
        """The data of a stage is being read."""
        if stage is not None:
            self.checked()
            self._start(stage)
            self.rows[stage].state = "reading data"
            self._redraw()

    def checked(self) -> None:
        """The data of the stage has been read; it waits for its turn."""
        if self.stage is not None:
            self.rows[self.stage].state, self.rows[self.stage].snapshot = "waiting", None
        self.stage = None

    def begins(self, stage: str) -> None:
        """A stage begins."""
        self._start(stage)
        self.rows[stage].state = "starting"
        self._redraw()

    def ended(self, stage: str) -> None:
        """It is done."""
        self.rows[stage].state, self.rows[stage].seconds = "done", time.monotonic() - self.began
        self.stage = None
        self._redraw()

    def look(self) -> None:
        """Redraw what the stage told, and show what it printed."""
        self._drain()
        if self.stage is not None:
            self.rows[self.stage].snapshot = self.snapshot() or self.rows[self.stage].snapshot
        self._redraw()

    def render(self) -> RenderableType:
        """The lines of the stages."""
        width = max((len(name) for name in self.rows), default=0)
        parts: list[RenderableType] = []
        for row in self.rows.values():
            parts += self._lines(row, width)
        return Group(*parts)

    def _lines(self, row: _Row, width: int) -> list[RenderableType]:
        """A stage's line, and below it the numbers of the one that is at work, or was."""
        snapshot, at_work = row.snapshot, row.stage == self.stage
        outer = snapshot["phases"][0] if snapshot is not None and snapshot["phases"] else None
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=width, no_wrap=True)
        grid.add_column(width=_BAR, no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        total = outer["total"] if outer is not None else None
        share = 1.0 if row.state in ("done", "done before") else outer["done"] / total if outer and total else 0.0
        bar = ProgressBar(total=1.0, completed=min(1.0, share), width=_BAR)
        text = row.state
        if at_work and outer is not None:
            text = counted(outer)
        seconds = time.monotonic() - self.began if at_work else row.seconds
        if seconds is not None:
            text += f"  {timedelta(seconds=round(seconds))}"
        if at_work and snapshot is not None and (left := seconds_left(snapshot)) is not None:
            text += f"  {timedelta(seconds=round(left))} left"
        grid.add_row(Text(row.stage), bar, Text(text, style=_STYLES.get(row.state, "")))
        texts = [] if snapshot is None or row.state == "reading data" else figures(snapshot)
        if snapshot is not None and at_work and len(snapshot["phases"]) > 1:
            texts.append(innermost(snapshot))
        if not texts or row.state == "waiting":
            return [grid]
        numbers = Text(" · ".join(texts), style="dim", no_wrap=True, overflow="ellipsis")
        return [grid, Padding(numbers, (0, 0, 0, width + 2))]

    def _say(self, text: str) -> None:
        self.console.print(Text.from_ansi(text), soft_wrap=True)

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _drain(self, whole: bool = False) -> None:
        """Show the lines that stages printed since the last time above the view.

        Args:
            whole: Show the last line, too, where it has not ended.
        """
        if self._folder is None:
            return
        path = Path(self._folder.name) / "output"
        try:
            with path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        self._read += len(new)
        *lines, self._cut = (self._cut + new).split(b"\n")
        if whole and self._cut:
            lines, self._cut = [*lines, self._cut], b""
        for text in lines:
            if b"\r" not in text.rstrip(b"\r"):  # else a bar of a library, which draws over itself
                self._say(text.rstrip(b"\r").decode("utf-8", errors="replace"))


def view_for(quiet: bool) -> View | None:
    """What shows a run where this process writes: nothing, a terminal that is redrawn, or None for lines.

    Args:
        quiet: Show nothing.
    """
    if quiet:
        return Quiet()
    console = Console(stderr=True)
    redrawable = console.is_terminal and not console.is_dumb_terminal and os.isatty(1) and os.isatty(2)
    return LiveView(console) if redrawable else None
