"""Made speech-like sounds and files of them, good and bad."""

import pathlib

import numpy as np
import soundfile

RATE = 16_000


def syllables(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """float32: harmonics of a gliding pitch under a syllable rhythm, and a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    rhythm = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time + rng.uniform(0, 6)), 0, 1)
    voice = sum(np.sin(k * phase) * rng.uniform(0.2, 1) / k for k in range(1, 9))
    return (0.15 * rhythm * voice + 0.005 * rng.standard_normal(len(time))).astype(np.float32)


def write(path: pathlib.Path, samples: np.ndarray, rate: int = RATE, subtype=None) -> pathlib.Path:
    """Writes float [samples] or [samples, channels]; the suffix is the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def speech_folder(folder: pathlib.Path, count: int, seconds: tuple[float, float]) -> pathlib.Path:
    """16-bit FLAC files of lengths spread over `seconds`, every second one in a sub-folder."""
    for number, length in enumerate(np.linspace(*seconds, count)):
        place = folder / "sub" if number % 2 else folder
        write(place / f"utterance{number}.flac", syllables(length, number))
    return folder


def cut(path: pathlib.Path, target: pathlib.Path, share: float = 0.5) -> pathlib.Path:
    """The first part of a file's bytes."""
    content = path.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def bad_files(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    """One file of every kind that cannot be served, with a part of what is said about it."""
    folder.mkdir(parents=True, exist_ok=True)
    sound = syllables(1.0)
    whole = {
        suffix: write(folder / f"whole{suffix}", sound)
        for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".w64", ".rf64")
    }
    bad = {}
    for suffix, path in whole.items():
        bad[cut(path, folder / f"cut{suffix}", 0.9)] = "the file is cut off"
        path.unlink()
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("negative", -np.inf)):
        broken = sound.copy()
        broken[777] = value
        path = write(folder / f"{name}.wav", broken, subtype="FLOAT")
        bad[path] = "1 samples are NaN or infinite"
    bad[write(folder / "short.wav", sound[:399])] = "399 samples at 16000 Hz"
    bad[write(folder / "short8k.wav", sound[:199], 8_000)] = "398 samples at 16000 Hz"
    bad[write(folder / "header.wav", sound[:0])] = "0 samples at 16000 Hz"
    bad[write(folder / "header44k.wav", sound[:0], 44_100)] = "0 samples at 16000 Hz"
    bad[cut(write(folder / "full.wav", sound), folder / "promise.wav", 44 / 32_044)] = "cut off"
    bad[cut(folder / "full.wav", folder / "half_header.wav", 20 / 32_044)] = "not readable as audio"
    (folder / "full.wav").unlink()
    (folder / "empty.wav").touch()
    bad[folder / "empty.wav"] = "the file is empty"
    (folder / "text.wav").write_text("To whom it may concern\n" * 50, encoding="utf-8")
    bad[folder / "text.wav"] = "not readable as audio"
    (folder / "samples.raw").write_bytes(b"\0\1" * 2_000)
    bad[folder / "samples.raw"] = "raw samples without a header"
    (folder / "folder.wav").mkdir()
    bad[folder / "folder.wav"] = "is a folder"
    bad[folder / "missing.wav"] = "No such file or directory"
    return bad


def streamed_wav(path: pathlib.Path, samples: np.ndarray, promised: int) -> pathlib.Path:
    """A 16-bit WAV as programs write it to a pipe: the header promises an unknown size."""
    write(path, samples, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = promised.to_bytes(4, "little")
    path.write_bytes(content)
    return path
