"""Looks at a pickle before it is unpickled: tuples that share their parts many times over.

A tuple (t, t) of a tuple (s, s) and so on takes a few bytes in a pickle and in memory. As the key
of a dictionary it is hashed, which visits every part as often as it is there: 2 to the power of the
depth, in C, where no signal is heard. Source: the stack machine of Python's `pickletools`.
"""

import io
import pathlib
import pickletools
import zipfile

from daisy_jax.errors import InputError

MOST = 100_000
"""Parts of a tuple, shared ones counted each time. Checkpoints hold sizes and strides."""
PICKLES = 5
"""That a file of old versions of torch begins with; behind them are numbers."""


def refuse_large_tuples(path: pathlib.Path) -> None:
    """Raises an InputError if a file of `torch.save` holds a tuple that takes for ever to hash.

    Of a torn file, which torch will refuse, nothing is said here.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        largest = _largest_tuple(io.BytesIO(archive.read(name)), 1)
                        _refuse(path, largest)
        else:
            with path.open("rb") as stream:
                _refuse(path, _largest_tuple(stream, PICKLES))
    except (ValueError, IndexError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise


def _refuse(path: pathlib.Path, largest: int) -> None:
    if largest > MOST:
        raise InputError(f"{path}: its content is nested too deeply for a checkpoint")


def _largest_tuple(stream: io.BytesIO | io.BufferedReader, pickles: int) -> int:
    """Parts of the largest tuple in the pickles that a stream begins with; stops above MOST."""
    largest = 0
    for _ in range(pickles):
        # What stands on the stack, and what is remembered: parts of a tuple, 1 for all else.
        stack: list[int | None] = []  # None: a mark
        memo: dict[int, int | None] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            before, after = opcode.stack_before, opcode.stack_after
            name = opcode.name
            if name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(str(argument))] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[int(str(argument))])
            elif name == "MARK":
                stack.append(None)
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                taken = _taken(stack, before)
                if name.startswith("TUPLE"):
                    parts = 1 + sum(part or 0 for part in taken)
                    largest = max(largest, parts)
                    if largest > MOST:
                        return largest
                    stack.append(parts)
                else:
                    stack.extend([1] * len(after))
    return largest


def _taken(stack: list[int | None], before: list[pickletools.StackObject]) -> list[int | None]:
    """What an operation takes from the stack, down to a mark if it takes one."""
    if pickletools.markobject in before:
        place = len(stack) - 1 - stack[::-1].index(None)
        taken = stack[place + 1 :]
        del stack[place - before.index(pickletools.markobject) :]
        return taken
    place = len(stack) - len(before)
    taken = stack[place:]
    del stack[place:]
    return taken
