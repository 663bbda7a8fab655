"""Pictures of the evaluation scripts, where matplotlib is installed."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from daisy_jax.console.terminal import say
from daisy_jax.whole_files import whole_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(path: pathlib.Path, draw: Callable[[], "Figure"]) -> bool:
    """Draws a figure into a PNG file and says so; False, and a word, without matplotlib.

    Args:
      path: the file.
      draw: makes the figure; called where matplotlib is there.
    """
    try:
        import matplotlib
    except ImportError:
        say(f"no {path.name}: pip install 'daisy-jax[plots]'")
        return False
    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False  # names may hold a dollar
    from matplotlib import pyplot

    figure = draw()
    with whole_files(path) as (partial,):
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)
    say(f"written: {path}")
    return True
