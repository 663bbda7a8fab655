"""The loop of the training scripts: batches ahead, logging, validation, checkpoints, stopping."""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from daisy_jax import parallel
from daisy_jax.data.prefetch import Batch, batches
from daisy_jax.errors import InputError
from daisy_jax.reporting import Progress, logger, report_progress
from daisy_jax.signals import Terminated, delayed_signals
from daisy_jax.training.metrics_log import Metrics, as_numbers
from daisy_jax.training.run_folder import Run


def warmup_then_decay(peak: float, warmup: int, steps: int) -> Callable[[Any], Any]:
    """A learning rate that grows linearly over `warmup` steps, then falls linearly to 0."""
    import optax

    up = optax.linear_schedule(0, peak, warmup)
    down = optax.linear_schedule(peak, 0, max(steps - warmup, 1))
    return optax.join_schedules([up, down], [warmup])


def loss_and_accuracy(values: dict[str, Any]) -> str:
    """What the progress bar shows of a step."""
    return f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}"


def fit(
    run: Run,
    state: Any,
    step: Callable[[Any, Batch], tuple[Any, Metrics]],
    batch: Callable[[int], Batch],
    *,
    steps: int,
    save_every: int,
    log_every: int,
    workers: int = 0,
    validate: Callable[[Any], dict[str, Any]] | None = None,
    describe: Callable[[dict[str, Any]], str] = loss_and_accuracy,
) -> Any:
    """Trains from the run's newest checkpoint to the last step.

    A run that was interrupted and resumed computes the same numbers as one that was not: a batch
    depends on its number alone, and the state holds everything else. SIGTERM and Ctrl-C end it
    after the current step, which is saved; a signal to one of several processes ends them all.

    Args:
      run: where checkpoints and metrics go.
      state: a pytree of arrays; donated.
      step: jitted; from a state and a batch to the next state and metrics, numbers or vectors.
      batch: from a step number (from 0) to numpy arrays, a function of the number alone; called
        ahead, in threads or worker processes. Of arrays it gives this process's rows.
      steps: how many steps the whole run has.
      save_every: steps between two checkpoints.
      log_every: steps between two lines of `metrics.jsonl`, whose values are means over them.
      workers: processes that read batches; 0: threads.
      validate: from a state to scores, "validation_loss" among them; called before each regular
        checkpoint. None: no validation.
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
            stopping, last, scores = stop(), done == steps, None
            if done % log_every == 0 or last:
                rate = (done - counted) / (time.perf_counter() - started)
                left = datetime.timedelta(seconds=round((steps - done) / rate))
                show(done, f"{_log_means(run, recent, done, rate, describe)}  {left} left")
                recent, started, counted = [], time.perf_counter(), done
            if done % save_every == 0 or last or stopping:
                _check(metrics, done)  # before such a state takes the place of a good one
                # Also when it is to stop: a resumed run shall have the same scores.
                if validate is not None and (done % save_every == 0 or last):
                    before = time.perf_counter()
                    scores = validate(state)
                    run.log(done, scores)
                    show(done, "  ".join(_scores(scores)))
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
    run: Run,
    recent: list[Metrics],
    done: int,
    rate: float,
    describe: Callable[[dict[str, Any]], str],
) -> str:
    """Logs the means since the last line, and says them briefly; `rate` is steps a second."""
    values = _means(recent)
    _check(values, done)
    speed = {"steps_per_second": rate}
    text = f"{describe(values)}  {rate:.3g} steps/s"
    if "audio_seconds" in values:
        speed["audio_per_second"] = rate * values["audio_seconds"]
        text += f"  {speed['audio_per_second']:.0f} times real time"
    run.log(done, values | speed)
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


def _check(metrics: dict[str, Any], step: int) -> None:
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}; lower the learning rate")
    if not float(metrics.get("audio_seconds", 1)):
        raise InputError(f"no utterance of step {step} could be read; is the data still there?")


def _scores(scores: dict[str, Any]) -> list[str]:
    """Those scores that are single numbers, for the progress bar."""
    numbers = {name: value for name, value in scores.items() if np.ndim(value) == 0}
    return [f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items()]


def _means(history: list[Metrics]) -> dict[str, Any]:
    """Mean of each metric, a number or a list of numbers."""
    numbers = as_numbers(history)
    return {
        name: np.mean([metrics[name] for metrics in numbers], axis=0).tolist()
        for name in numbers[0]
    }
