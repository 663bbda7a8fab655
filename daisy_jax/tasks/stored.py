"""A task's data with its features, made where they are not there yet."""

import pathlib
from collections.abc import Callable

from daisy_jax import parallel
from daisy_jax.data.corpus import corpus_name
from daisy_jax.downstream import TaskData
from daisy_jax.extraction import make_store
from daisy_jax.hubert import Hubert
from daisy_jax.tasks.task import Task, usable_lengths
from daisy_jax.terminal import progress_bar


def open_task_data(
    task: Task,
    part: str,
    folder: str,
    upstream: Hubert,
    features: pathlib.Path,
    *,
    live: bool,
    on_error: Callable[[str], None],
) -> TaskData:
    """One part of a task.

    Args:
      task: the task.
      part: "train", "dev" or "test".
      folder: the corpus.
      upstream: the model.
      features: where stores are; this one's folder is named after the task and the part.
      live: whether features are computed when they are needed; entropies alone are stored then.
      on_error: called with one line for each utterance that is left out.

    Raises:
      InputError: the corpus, or the store, is not as it should be.
      OSError: the store cannot be written.
    """
    examples = task.open(folder, part, on_error, progress_bar(f"measuring {part}"))
    examples = usable_lengths(examples, on_error)
    chosen = "-".join(getattr(task.settings, part)).replace("/", "-")
    place = features / f"{corpus_name(folder)}-{part}-{chosen}{'-entropies' if live else ''}"
    store = make_store(
        place,
        upstream,
        examples.corpus,
        folder,
        () if live else range(upstream.config.num_layers + 1),
        on_error=on_error,
        progress=lambda count: progress_bar(f"features of {part}", count),
    )
    everywhere = parallel.replicate(upstream) if live else None
    return TaskData(task, examples, store, everywhere, on_error)
