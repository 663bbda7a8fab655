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
from daisy_jax.whole_files import read_json, write_json, write_text

RECORDS = "steps"
MINUTE = 60.0


class Record(TypedDict):
    """What is kept of a step, in steps/NAME.json."""

    command: str
    seconds: float
    """That it ran, in all attempts."""
    finished: float
    """When it ended well, seconds since the epoch; 0: not yet."""


def command_of(step: Step) -> str:
    """The command as a person would type it in the project's folder or wherever paths hold."""
    script = os.path.relpath(ROOT / step.script)
    return shlex.join(["python", script, *step.arguments])


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
        # What a step makes is there as a whole or not at all, so that it counts without a record.
        finished = record["finished"] or max(
            _changed(path) for path in step.makes or [self._folder]
        )
        return bool(step.makes or record["finished"]) and finished >= max(ended, default=0)

    def run(self, step: Step) -> bool:
        """Runs a step, again if it must be; whether it ended well.

        Its lines are kept in steps/NAME.log, and the time that it took in steps/NAME.json.
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
        earlier, began, lines = record["seconds"], time.time(), []
        written = began
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
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                self._show(line.rstrip("\n"))
                if time.time() > written + MINUTE:  # this process may be killed
                    written = time.time()
                    write_json(path, {**record, "seconds": earlier + written - began})
            status = process.wait()
        except BaseException as error:
            _end(process, at_once=not isinstance(error, KeyboardInterrupt))
            raise
        finally:
            record["seconds"] = earlier + time.time() - began
            write_text(self._folder / f"{step.name}.log", "".join(lines))
            write_json(path, record)
        well = status == 0 and all(made.exists() for made in step.makes)
        if well:
            write_json(path, {**record, "finished": time.time()})
        else:
            self._show(f"{step.name}: ended with status {status}; its lines are in {path.stem}.log")
        return well

    def run_all(self, steps: Sequence[Step]) -> dict[str, str]:
        """Runs what is not done; of each step "done", "done before", "failed" or "left out"."""
        outcome: dict[str, str] = {}
        for step in steps:
            if any(outcome.get(name) in ("failed", "left out") for name in step.after):
                outcome[step.name] = "left out"
            elif self.is_done(step, steps):
                outcome[step.name] = "done before"
            else:
                outcome[step.name] = "done" if self.run(step) else "failed"
        return outcome


def _changed(path: pathlib.Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


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
