"""Runs the steps of a reproduction as commands: what is not done yet, each one once."""

import contextlib
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

from daisy_jax import InputError
from daisy_jax.study.reproduction import ROOT, Step
from daisy_jax.whole_files import read_json, write_json

RECORDS = "steps"
MINUTE = 60.0
NOT_MADE = ("failed", "missing", "left out")
"""What may become of a step, so that others cannot be run."""


class Record(TypedDict):
    """What is kept of a step, in steps/NAME.json."""

    command: str
    seconds: float
    """That it ran, in all attempts."""
    finished: float
    """When it ended well, seconds since the epoch; 0: not yet."""


def command_of(step: Step) -> str:
    """The command as a person types it in the project's folder."""
    return shlex.join(["python", step.script, *step.arguments])


class Runner:
    """The steps of one output folder."""

    def __init__(
        self, folder: pathlib.Path, show: Callable[[str], None], lock: tuple[int, ...] = ()
    ):
        """Shows lines, those of the commands among them, with `show`; commands keep the `lock`."""
        self._folder, self._show, self._lock = folder / RECORDS, show, lock
        # Many steps run the same programs; those of another machine may not run here.
        kept = (folder / "compiled" / (platform.node() or "host")).resolve()
        self._environment = {"JAX_COMPILATION_CACHE_DIR": str(kept), **os.environ}

    def record(self, step: Step) -> Record | None:
        """What is known of a step; None if it was never begun."""
        path = self._folder / f"{step.name}.json"
        if not path.exists():
            return None
        return read_json(path, Record, f"remove it, and {step.name} is run again")

    def is_done(self, step: Step, steps: Sequence[Step]) -> bool:
        """Whether a step has ended, behind all that it needs.

        Raises:
          InputError: it was begun with another command.
        """
        record = self.record(step)
        if record is None:
            return False
        if record["command"] != command_of(step):
            raise InputError(
                f"{self._folder / step.name}.json: {step.name} was begun as {record['command']!r} "
                f"and is {command_of(step)!r} now; give another --output, or remove this file and "
                "what the step made"
            )
        if not all(path.exists() for path in step.makes):
            return False
        needed = [self.record(each) for each in steps if each.name in step.after]
        ended = [each["finished"] for each in needed if each is not None]
        finished = record["finished"]
        if not finished and step.whole:
            finished = max(path.stat().st_mtime for path in step.makes)
        return finished > 0 and finished >= max(ended, default=0)

    def run(self, step: Step) -> bool:
        """Runs a step, again if it must be; whether it ended well.

        Its lines go into steps/NAME.log, and the time that it took into steps/NAME.json.
        """
        words = [sys.executable, str(ROOT / step.script), *step.arguments]
        if step.run is not None and any((step.run / "checkpoints").glob("[0-9]*")):
            words.append("--resume")
        before = self.record(step)
        record: Record = {"command": command_of(step), "seconds": 0.0, "finished": 0.0}
        if before is not None:
            record["seconds"] = before["seconds"]
        path = self._folder / f"{step.name}.json"
        write_json(path, record)
        self._show(f"\n{step.name}: {record['command']}")
        earlier, began = record["seconds"], time.time()
        try:
            with (
                open(path.with_suffix(".log"), "a", encoding="utf-8") as log,
                self._process(words) as process,
            ):
                log.write(f"{record['command']}\n")
                for line in process.stdout or ():
                    log.write(line)
                    log.flush()
                    self._show(line.rstrip("\n"))
                    now = time.time()
                    if now > began + record["seconds"] - earlier + MINUTE:  # it may be killed
                        record["seconds"] = earlier + now - began
                        write_json(path, record)
                status = process.wait()
        finally:
            record["seconds"] = earlier + time.time() - began
            write_json(path, record)
        well = status == 0 and all(made.exists() for made in step.makes)
        if well:
            write_json(path, {**record, "finished": time.time()})
        else:
            self._show(f"{step.name}: ended with status {status}; its lines are in {path.stem}.log")
        return well

    @contextlib.contextmanager
    def _process(self, words: list[str]) -> Iterator[subprocess.Popen[str]]:
        """A command that has been started; it has ended when the block is left, however."""
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            pass_fds=self._lock if os.name == "posix" else (),
        )
        try:
            yield process
        except BaseException as error:  # a signal, which a terminal's Ctrl-C is to both
            _end(process, at_once=not isinstance(error, KeyboardInterrupt))
            raise

    def run_all(self, steps: Sequence[Step]) -> dict[str, str]:
        """Runs what is not done.

        Returns:
          Of each step "done", "done before", "failed", "missing" (an input) or "left out" (what it
          needs was not made).
        """
        outcome: dict[str, str] = {}
        for step in steps:
            missing = [each for each in step.inputs if not each.path.exists()]
            if any(outcome.get(name) in NOT_MADE for name in step.after):
                outcome[step.name] = "left out"
            elif self.is_done(step, steps):
                outcome[step.name] = "done before"
            elif missing:
                self._show(f"{step.name}: {missing[0].path} is missing ({missing[0].source})")
                outcome[step.name] = "missing"
            else:
                outcome[step.name] = "done" if self.run(step) else "failed"
        return outcome


def _end(process: subprocess.Popen, *, at_once: bool) -> None:
    """Ends a command so that it can save; Ctrl-C in a terminal has reached it already."""
    if not at_once:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(MINUTE)
    if process.poll() is None:
        process.terminate()
    process.wait()


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[int]:
    """Keeps others out of a folder while the block runs. Yields the lock's file descriptor.

    A command that has inherited it keeps the lock until it ends, also if this process is killed.

    Raises:
      InputError: somebody else is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a", encoding="utf-8") as stream:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise InputError(
                f"{folder}: another reproduction runs there; wait for it, or give another --output"
            ) from None
        yield stream.fileno()
