"""What a reproduction of the paper is made of: scales, places, inputs, and what a step is."""

import dataclasses
import pathlib
from typing import Literal, NamedTuple

from daisy_jax.tasks.presets import TASKS

Target = Literal["table1", "figure2", "figure3", "figure4", "figure5"]
TARGETS: tuple[Target, ...] = ("table1", "figure2", "figure3", "figure4", "figure5")
ROOT = pathlib.Path(__file__).parents[2]
"""The project's folder, with the scripts."""
LAYER = 6
"""Of the paper's static exit."""
RULES = {
    "ratio-1": ("--ratio=1",),
    "ratio-0.7": ("--ratio=0.7",),
    f"layer-{LAYER}": (f"--layer={LAYER}",),
    f"compute-of-layer-{LAYER}": (f"--compute-of-layer={LAYER}",),
    "full-no-normalize": ("--full", "--no-normalize"),
}
"""How utterances leave while a task head is trained: Table 1's rows, and figure 3's crosses beside
early exit at the same compute."""
LEVELS = ("clean", "10dB", "5dB", "0dB")
SOURCES = {
    "checkpoint": "fairseq's HuBERT Base: dl.fbaipublicfiles.com/hubert/hubert_base_ls960.pt",
    "LibriSpeech": "its archives, openslr.org/12, unpacked into one place",
    "VoxCeleb1": "its own page (on request), with iden_split.txt beside wav",
    "noisy-vctk-16k": "VoiceBank-DEMAND: datashare.ed.ac.uk/handle/10283/2791",
    "Libri2Mix": "generate_librimix_ss.sh of github.com/s3prl/LibriMix makes it of LibriSpeech",
    "MUSAN": "openslr.org/17",
}
"""Where each input comes from."""
KINDS = ("clean", "noisy")
"""Of VoiceBank-DEMAND's recordings."""
WHOLE_SPEECH = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean")
"""Of LibriSpeech, for stage 1."""
FOLDERS = {"asr": "LibriSpeech", "sid": "VoxCeleb1", "se": "noisy-vctk-16k", "ss": "Libri2Mix"}
"""Of the corpora."""
MEAN_SECONDS = {"asr": 12.3, "sid": 8.0, "se": 2.9, "ss": 15.0}
"""Of an utterance, or a crop, of the training sets."""
HOURS = {
    "asr": (100.6, 5.4, 5.4),
    "sid": (316.0, 15.7, 18.8),
    "se": (8.8, 0.6, 0.6),
    "ss": (58.0, 4.2, 11.0),
}
"""Of the training, development and test sets."""
STORED = 3.6
"""GB of features of all layers that an hour makes, HuBERT Base."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a reproduction is."""

    name: str
    preset: str
    """Of the task heads."""
    model: str
    """A model folder, below the project's, in the place of a converted checkpoint; empty: the
    checkpoint."""
    branches: tuple[str, ...]
    """Further options of stage 1."""
    heads: dict[str, tuple[str, ...]]
    """Further options of stage 2, by task."""
    evaluation: tuple[str, ...]
    """Further options of evaluations."""
    size: Literal["base", "tiny"]
    """Of the model, for expected hours."""
    share: float = 1.0
    """How large development and test sets are, of the paper's, for expected hours."""


SCALES = {
    "paper": Scale("paper", "superb", "", (), {task: () for task in TASKS}, (), "base"),
    "tiny": Scale(
        "tiny",
        "daisy-tiny",
        "daisy_jax/models/daisy-tiny",
        ("--preset=daisy-tiny", "--steps=250", "--validation=none"),
        {
            "asr": ("--steps=60", "--save-every=60", "--batch-size=4"),
            "sid": ("--steps=50", "--save-every=50", "--cache=layers"),
            "se": ("--steps=50", "--save-every=50"),
            "ss": ("--steps=50", "--save-every=50"),
        },
        ("--timed=1", "--no-oracle"),
        "tiny",
        0.02,
    ),
}


class Input(NamedTuple):
    """A file or folder that the user has to bring."""

    path: pathlib.Path
    source: str
    """Where it comes from."""


class Cost(NamedTuple):
    """What decides how long a step takes."""

    way: str
    """"stored features", "with exits" or "all layers", of one training step; "forward" of the trunk
    alone; empty: nothing that a device does."""
    task: str
    seconds: float
    """Of audio that is gone through."""
    gigabytes: float
    """That it writes."""


NOTHING = Cost("", "", 0, 0)


@dataclasses.dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    script: str
    """Below the project's folder."""
    arguments: tuple[str, ...]
    makes: tuple[pathlib.Path, ...]
    """What is there when it has ended, and not before."""
    after: tuple[str, ...] = ()
    """Names of the steps that it needs."""
    inputs: tuple[Input, ...] = ()
    run: pathlib.Path | None = None
    """A run folder, which is resumed if it has a checkpoint."""
    whole: bool = False
    """Whether what it makes counts though nobody has seen its end: it could not be run again."""
    cost: Cost = NOTHING


@dataclasses.dataclass(frozen=True)
class Places:
    """Where everything is."""

    corpora: pathlib.Path
    checkpoint: str
    output: pathlib.Path
    accelerator: str
    on_cpu: bool
    """Whether features are stored, and few utterances are timed."""
    steps: int = 0
    """Optimizer steps of every training; 0: as the scale has it."""

    small: bool = False
    """Whether LibriSpeech's parts may be others than the paper's."""

    def corpus(self, name: str) -> pathlib.Path:
        """The folder of one of the corpora."""
        other = self.corpora / "VoiceBank-DEMAND"
        if name == "noisy-vctk-16k" and other.is_dir() and not (self.corpora / name).is_dir():
            return other
        return self.corpora / name

    def inputs(self, name: str, *parts: str) -> tuple[Input, ...]:
        """What must be there of a corpus."""
        return tuple(Input(self.corpus(name) / part, SOURCES[name]) for part in parts)

    def parts_of(self, task: str) -> tuple[Input, ...]:
        """What a task reads of its corpus."""
        name = FOLDERS[task]
        if task == "asr":
            return self.inputs(name, *(self.split(part) for part in ("train", "dev", "test")))
        if task == "sid":
            return self.inputs(name, "iden_split.txt")
        if task == "ss":
            return self.inputs(
                name, *(f"wav16k/min/{part}" for part in ("train-100", "dev", "test"))
            )
        rate = "_16k" if (self.corpus(name) / "clean_testset_wav_16k").is_dir() else ""
        folders = (f"{a}_{b}_wav{rate}" for b in ("trainset_28spk", "testset") for a in KINDS)
        return self.inputs(name, *folders)

    def split(self, part: Literal["train", "dev", "test"]) -> str:
        """The name of LibriSpeech's part; on a small scale another one that begins as it does."""
        name = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}[part]
        folder = self.corpora / "LibriSpeech"
        if not self.small or (folder / name).is_dir() or not folder.is_dir():
            return name
        others = sorted(path.name for path in folder.glob(f"{part}-clean*") if path.is_dir())
        return others[0] if others else name
