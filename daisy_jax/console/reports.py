"""Shows what the library reports: bars on a terminal, lines elsewhere, all of it on stderr."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daisy_jax.reporting import Progress, logger, printable

if TYPE_CHECKING:
    import rich.progress


@contextlib.contextmanager
def shown_reports() -> Iterator[None]:
    """Shows the library's reports while the block runs."""
    handler = _Shown()
    before = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # other libraries' handlers would show them again
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        handler.close()


class _Shown(logging.Handler):
    """What is left out is said once; where a bar shows how far the work is, no line repeats it."""

    def __init__(self):
        super().__init__()
        self._left_out: set[str] = set()
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[object, rich.progress.TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        progress: Progress | None = getattr(record, "progress", None)
        if progress is not None and sys.stderr.isatty():
            self._show(progress)
        elif getattr(record, "left_out", False):
            line = record.getMessage()
            if line not in self._left_out:
                self._left_out.add(line)
                self._print(f"left out ({len(self._left_out)} so far): {printable(line)}")
        elif record.levelno >= logging.INFO:
            warning = "warning: " if record.levelno >= logging.WARNING else ""
            self._print(warning + printable(record.getMessage()))

    def _print(self, line: str) -> None:
        if self._bars is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(line, markup=False, highlight=False)

    def _show(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            self._bars = Bars(
                *Bars.get_default_columns(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(stderr=True, soft_wrap=True),  # which leaves long lines whole
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # else what goes to a file would pass the bar
            )
            self._bars.start()
        if progress.key not in self._tasks:
            task = self._bars.add_task(escape(progress.what), total=progress.total, text="")
            self._tasks[progress.key] = task
        task = self._tasks[progress.key]
        self._bars.update(task, completed=progress.done, text=progress.text)
        if progress.ended:
            self._bars.refresh()
            self._bars.remove_task(self._tasks.pop(progress.key))
            if not self._tasks:
                self.close()

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}
        super().close()
