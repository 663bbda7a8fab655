"""The loop of the training scripts: batches ahead, logging, validation, checkpoints, stopping."""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree, Shaped

from daisy_jax import parallel
from daisy_jax.data.side_work import Batch, batches
from daisy_jax.errors import InputError, Terminated, delayed_signals
from daisy_jax.reporting import Progress, logger, report_progress
from daisy_jax.training.metrics_log import Metrics, Values, as_numbers, one_number
from daisy_jax.training.run_folder import Run

State = TypeVar("State")


def warmup_then_decay(peak: float, warmup: int, steps: int) -> optax.Schedule:
    """A learning rate that grows linearly over `warmup` steps, then falls linearly to 0."""
    up = optax.linear_schedule(0, peak, warmup)
    down = optax.linear_schedule(peak, 0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup])


AHEAD = 2
"""Steps that are begun before an earlier one has ended. JAX would begin thirty, and a signal would
wait for all of them."""


def loss_and_accuracy(values: Values) -> str:
    """What the progress bar shows of a step."""
    return f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}"


def fit(
    run: Run,
    state: State,
    step: Callable[[State, PyTree[Shaped[Array, "..."]]], tuple[State, Metrics]],
    batch: Callable[[int], Batch],
    *,
    steps: int,
    save_every: int,
    log_every: int,
    validate_every: int = 0,
    workers: int = 0,
    validate: Callable[[State], Values] | None = None,
    describe: Callable[[Values], str] = loss_and_accuracy,
) -> State:
    """Trains from the run's newest checkpoint to the last step.

    A resumed run computes the same numbers as one that was not interrupted. SIGTERM and Ctrl-C end
    it after the current step, which is saved; a signal to one of several processes ends them all.

    Args:
      run: where checkpoints and metrics go.
      state: a pytree of arrays; donated.
      step: jitted; from a state and a batch to the next state and metrics, numbers or vectors.
      batch: this process's rows of a step's batch, by the step's number (from 0); called ahead.
      steps: how many steps the whole run has.
      save_every: steps between two checkpoints.
      log_every: steps between two lines of `metrics.jsonl`, whose values are means over them.
      workers: processes that read batches; 0: threads.
      validate_every: steps between two validations; a checkpoint follows each. 0: `save_every`.
      validate: from a state to scores, "validation_loss" among them; None: no validation.
      describe: from a line's values to what is reported of them.

    Returns:
      The state with the lowest validation loss; without validation, or stopped, the last one.

    Raises:
      FloatingPointError: the loss has become NaN or infinite.
      OSError: a checkpoint could not be written.
    """
    state, first, recent = run.restore(parallel.replicate(state))
    upcoming = batches(batch, first, steps, workers)
    started, counted = time.perf_counter(), first
    with (
        contextlib.closing(run),  # after an error too, or the program hangs at a half checkpoint
        contextlib.closing(upcoming),
        delayed_signals() as stopped,
        _shown(steps) as show,
    ):
        stopping, stop = False, parallel.common_stop(stopped)
        for done in range(first + 1, steps + 1):
            state, metrics = step(state, parallel.place(next(upcoming)))
            recent.append(metrics)
            if len(recent) > AHEAD:
                jax.block_until_ready(recent[-1 - AHEAD])
            stopping, last, scores = stop(), done == steps, None
            if done % log_every == 0 or last:
                lines = as_numbers(recent)  # first, as it waits for steps that were only begun
                rate = (done - counted) / (time.perf_counter() - started)
                left = datetime.timedelta(seconds=round((steps - done) / rate))
                show(done, f"{_log_means(run, lines, done, rate, describe)}  {left} left")
                recent, started, counted = [], time.perf_counter(), done
            due = done % (validate_every or save_every) == 0 or last
            if done % save_every == 0 or due or stopping:
                _check(as_numbers([metrics])[0], done)  # before it takes a good state's place
                # Also when it is to stop: a resumed run shall have the same scores.
                if validate is not None and due:
                    before = time.perf_counter()
                    scores = validate(state)
                    run.log(done, scores)
                    show(done, _numbers_in_words(scores))
                    started += time.perf_counter() - before  # the rate is that of training
                run.save(state, done, recent, scores)
            if stopping:
                if parallel.is_first():
                    logger.info("stopped after step %d; --resume goes on from there", done)
                break
        # A signal that came too late for the loop is one to all processes nevertheless.
        stopping = parallel.any_process(stopping or stopped())
        if validate is not None and not stopping:
            state = run.best(state)
    if stopping:  # because of a signal to another process
        raise Terminated
    return state


def _log_means(
    run: Run, lines: list[Values], done: int, rate: float, describe: Callable[[Values], str]
) -> str:
    """Logs the means since the last line, and says them briefly; `rate` is steps a second."""
    values = {name: np.mean([line[name] for line in lines], axis=0).tolist() for name in lines[0]}
    _check(values, done)
    text = f"{describe(values)}  {rate:.3g} steps/s"
    values["steps_per_second"] = rate
    if "audio_seconds" in values:
        values["audio_per_second"] = rate * values["audio_seconds"]
        text += f"  {values['audio_per_second']:.0f} times real time"
    run.log(done, values)
    return text


@contextlib.contextmanager
def _shown(steps: int) -> Iterator[Callable[[int, str], None]]:
    """Yields a function that reports a finished step and what is known of it, in one process."""
    key, last = object(), 0

    def show(done: int, text: str, level: int = logging.INFO, ended: bool = False) -> None:
        nonlocal last
        last = done
        if parallel.is_first():
            report_progress(Progress(key, "step", done, steps, text, ended), level)

    try:
        yield show
    finally:
        show(last, "", logging.DEBUG, ended=True)


def _check(values: Values, step: int) -> None:
    loss = one_number(values["loss"])
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}; lower the learning rate")
    if not one_number(values.get("audio_seconds", 1)):
        raise InputError(f"no utterance of step {step} could be read; is the data still there?")


def _numbers_in_words(scores: Values) -> str:
    """Those scores that are single numbers, for the progress bar."""
    numbers = {name: value for name, value in scores.items() if not isinstance(value, list)}
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
