"""The downstream corpora in their own layouts, and what is said about missing parts."""

import dataclasses
import json
import os
import pathlib
import shutil

import made_corpora
import numpy as np
import pytest
import sounds

from daisy_jax import audio
from daisy_jax.data.batches import Crop
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.libri2mix import open_libri2mix
from daisy_jax.data.transcripts import transcripts
from daisy_jax.data.voicebank import open_voicebank
from daisy_jax.data.voxceleb import open_voxceleb
from daisy_jax.errors import InputError
from daisy_jax.tasks.asr import CHARACTERS, AsrSettings, greedy_text
from daisy_jax.tasks.presets import PRESETS, TASKS, make_task, read_preset
from daisy_jax.tasks.spec_augment import SpecAugment

REAL = pathlib.Path(os.environ.get("SPEECH", ""))
needs_speech = pytest.mark.skipif(
    "SPEECH" not in os.environ, reason="SPEECH names no folder with small parts of the corpora"
)


# ---- LibriSpeech ----


def test_transcripts_are_found_by_name(tmp_path):
    made_corpora.librispeech(tmp_path, "train-clean-100", 2, 3)
    corpus = open_corpus(tmp_path, ["train-clean-100"])
    texts = transcripts(tmp_path, corpus.names)
    assert texts[:3] == ["THE CAT SAT", "CAT SAT ON", "SAT ON A"]
    assert len(texts) == 6


@pytest.mark.parametrize("between", [" ", "\t", "  ", " \t "])
def test_names_and_texts_may_have_any_white_space_between_them(tmp_path, between):
    made_corpora.librispeech(tmp_path, "dev-clean", 1, 2)
    listing = tmp_path / "dev-clean" / "1" / "7" / "1-7.trans.txt"
    lines = f"\ufeff1-7-0000{between}THE CAT\r\n\n  1-7-0001{between}A  TEXT \n"
    listing.write_text(lines, encoding="utf-8", newline="")
    corpus = open_corpus(tmp_path, ["dev-clean"])
    assert transcripts(tmp_path, corpus.names) == ["THE CAT", "A  TEXT"]


def test_a_missing_transcript_is_named_with_its_place(tmp_path):
    made_corpora.librispeech(tmp_path, "dev-clean", 1, 2)
    listing = tmp_path / "dev-clean" / "1" / "7" / "1-7.trans.txt"
    corpus = open_corpus(tmp_path, ["dev-clean"])
    listing.write_text("1-7-0000 THE CAT\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"1-7\.trans\.txt: has no line for 1-7-0001"):
        transcripts(tmp_path, corpus.names)
    listing.unlink()
    with pytest.raises(InputError, match=r"no transcript; expected in .*1-7\.trans\.txt"):
        transcripts(tmp_path, corpus.names)


OWN = {"train/a.wav": "The cat", "train/deep/b.flac": "sat", "test/c.wav": "on a  mat"}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("transcripts.tsv", [f"{key}\t{text}" for key, text in OWN.items()]),
        ("transcripts.tsv", ["a\tThe cat", "", "train/deep/b\t sat ", "c\ton a  mat", "d\tmore"]),
        ("transcripts.jsonl", [json.dumps({"id": k, "text": t}) for k, t in OWN.items()]),
        (
            "transcripts.jsonl",
            [json.dumps({"audio_filepath": k, "text": t, "duration": 1.5}) for k, t in OWN.items()],
        ),
    ],
)
def test_a_table_of_texts_serves_any_folder(tmp_path, name, lines):
    for file in OWN:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        sounds.write(tmp_path / file, sounds.syllables(0.5))
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    task = make_task("asr", dataclasses.replace(read_preset("asr", "daisy-tiny"), train=("train",)))
    examples = task.open(str(tmp_path), "train")
    assert examples.corpus.names == ["train/a.wav", "train/deep/b.flac"]
    assert list(examples.targets) == ["The cat", "sat"]
    assert transcripts(tmp_path, open_corpus(tmp_path).names) == ["on a  mat", "The cat", "sat"]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("transcripts.tsv", "a sat", r"transcripts\.tsv:1: 'a sat' has no tab"),
        ("transcripts.tsv", "b\tsat", r"has no line for x/a\.wav"),
        ("transcripts.tsv", "a\tsat", r"a is the name of 2 files, such as x/a\.wav; give paths"),
        ("transcripts.jsonl", "{", r"transcripts\.jsonl:1: not JSON"),
        ("transcripts.jsonl", '{"id": "a"}', r"transcripts\.jsonl:1: has no id or no text"),
        ("transcripts.jsonl", '{"id": 1, "text": ""}', r"jsonl:1: Expected `str`"),
    ],
)
def test_a_table_that_says_too_little_is_one_line(tmp_path, name, line, said):
    (tmp_path / name).write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        transcripts(tmp_path, ["x/a.wav", "y/a.wav"])


def test_libri_lights_ten_hours_lie_in_folders_of_their_own(tmp_path):
    for place in ("1h/0/clean", "1h/5/other", "9h/clean"):
        made_corpora.librispeech(tmp_path, f"librispeech_finetuning/{place}", 1, 2)
    task = make_task("asr", read_preset("asr", "minisuperb"))
    examples = task.open(str(tmp_path), "train")
    assert len(examples.corpus.names) == len(examples.targets) == 6
    shutil.rmtree(tmp_path / "librispeech_finetuning" / "9h")
    with pytest.raises(InputError, match="no split librispeech_finetuning/9h there"):
        task.open(str(tmp_path), "train")


# ---- VoxCeleb1 ----


@pytest.mark.parametrize("place", ["wav", "dev/wav"])
def test_voxceleb_is_read_by_its_split_file(tmp_path, place):
    made_corpora.voxceleb(tmp_path, 3, 5, place)
    parts = [open_voxceleb(tmp_path, "iden_split.txt", part) for part in "123"]
    assert [len(part.corpus.names) for part in parts] == [9, 3, 3]
    assert parts[0].names == ("id10001", "id10002", "id10003")
    for part in parts:
        for name, speaker in zip(part.corpus.names, part.speaker, strict=True):
            assert part.names[speaker] in name


def test_a_path_may_hold_spaces_and_any_number_of_folders(tmp_path):
    for name in ("spk A/one two.wav", "spk B/deep/er/x.wav"):
        sounds.write(tmp_path / "wav" / name, sounds.syllables(0.5))
    (tmp_path / "iden_split.txt").write_text("1 spk A/one two.wav\n1 spk B/deep/er/x.wav\n")
    found = open_voxceleb(tmp_path, "iden_split.txt", "1")
    assert found.names == ("spk A", "spk B")
    assert found.speaker.tolist() == [0, 1]


def test_few_utterances_of_each_speaker_are_always_the_same(tmp_path):
    made_corpora.voxceleb(tmp_path, 3, 6)
    first, again = (open_voxceleb(tmp_path, "iden_split.txt", "1", 2) for _ in range(2))
    assert first.corpus.names == again.corpus.names
    assert np.bincount(first.speaker).tolist() == [2, 2, 2]


def test_missing_parts_of_voxceleb_are_named(tmp_path):
    with pytest.raises(InputError, match=r"iden_split\.txt: no such file"):
        open_voxceleb(tmp_path, "iden_split.txt", "1")
    made_corpora.voxceleb(tmp_path, 2, 4)
    with pytest.raises(InputError, match="no line of set 4"):
        open_voxceleb(tmp_path, "iden_split.txt", "4")
    (tmp_path / "wav" / "id10002" / "video" / "00001.wav").unlink()
    with pytest.raises(InputError, match=r"1 of 4 files .* the first is id10002/video/00001\.wav"):
        open_voxceleb(tmp_path, "iden_split.txt", "1")
    two = make_task("sid", dataclasses.replace(read_preset("sid", "superb"), train=("1", "2")))
    with pytest.raises(InputError, match=r"sid, train: one part of the corpus was wanted, 1, 2"):
        two.open(str(tmp_path), "train")
    (tmp_path / "other.txt").write_text("1 id1/a b.wav\n\n4 id1/c.wav\n")
    with pytest.raises(InputError, match=r"other\.txt:3: '4 id1/c\.wav' is none of"):
        open_voxceleb(tmp_path, "other.txt", "1")
    shutil.rmtree(tmp_path / "wav")
    with pytest.raises(InputError, match=r"no audio there; expected .*/wav, .*dev/wav"):
        open_voxceleb(tmp_path, "iden_split.txt", "1")


# ---- mixtures ----


def test_voicebank_holds_speakers_out(tmp_path):
    made_corpora.voicebank(tmp_path)
    train = open_voicebank(tmp_path, "trainset_28spk", without=["p226", "p287"])
    dev = open_voicebank(tmp_path, "trainset_28spk", ["p226", "p287"])
    assert train.corpus.names == ["p300_001.wav", "p300_002.wav", "p300_003.wav"]
    assert dev.corpus.names == ["p226_001.wav", "p226_002.wav"]
    noisy = dev.corpus.read(1, 0, 100_000)
    (clean,) = dev.read_sources(1)
    assert len(clean) == len(noisy) == dev.corpus.lengths[1]
    assert 0 < np.std(noisy - clean) < np.std(clean)


def test_voicebank_is_read_as_its_archives_unpack_to(tmp_path):
    whole = made_corpora.voicebank(tmp_path / "16k")
    for kind in ("clean", "noisy"):
        for path in (whole / f"{kind}_testset_wav_16k").iterdir():
            sound = np.repeat(audio.load(path), 3)  # 48 kHz
            sounds.write(tmp_path / "48k" / f"{kind}_testset_wav" / path.name, sound, 48_000)
    ours, theirs = (open_voicebank(tmp_path / name, "testset") for name in ("48k", "16k"))
    assert ours.corpus.names == theirs.corpus.names
    np.testing.assert_array_equal(ours.corpus.lengths, theirs.corpus.lengths)
    for index, length in enumerate(ours.corpus.lengths):
        assert ours.read_sources(index).shape == (1, length)


def test_libri2mix_is_the_sum_of_its_sources(tmp_path):
    made_corpora.libri2mix(tmp_path, {"dev": 3})
    found = open_libri2mix(tmp_path, "dev")
    for index in range(3):
        sources = found.read_sources(index)
        assert sources.shape == (2, found.corpus.lengths[index])
        mixture = found.corpus.read(index, 0, 100_000)
        np.testing.assert_allclose(sources.sum(axis=0), mixture, atol=1e-4)  # 16-bit files
    part = found.part(np.array([2, 0]))
    np.testing.assert_array_equal(part.read_sources(0), found.read_sources(2))


def test_missing_parts_of_mixtures_are_named(tmp_path, left_out):
    with pytest.raises(InputError, match=r"wav16k/min/dev: no such folder; LibriMix' scripts"):
        open_libri2mix(tmp_path, "dev")
    made_corpora.libri2mix(tmp_path, {"dev": 3})
    place = tmp_path / "wav16k" / "min" / "dev"
    (place / "s2" / "1.wav").unlink()
    found = open_libri2mix(tmp_path, "dev")
    assert found.corpus.names == ["0.wav", "2.wav"]
    assert "1.wav: has no counterpart in" in left_out[0]
    shutil.copy(place / "s1" / "0.wav", place / "s1" / "2.wav")
    left_out.clear()
    assert open_libri2mix(tmp_path, "dev").corpus.names == ["0.wav"]
    assert "2.wav: its counterparts have other lengths" in left_out[1]
    with pytest.raises(InputError, match=r"no testset .* expected .*noisy_testset_wav and"):
        open_voicebank(tmp_path, "testset")


# ---- presets and batches ----


def test_every_task_has_the_two_presets_with_the_papers_learning_rates():
    rates = {}
    for task in TASKS:
        superb, mini = read_preset(task, "superb"), read_preset(task, "minisuperb")
        make_task(task, superb), make_task(task, mini)
        assert mini.steps < superb.steps
        assert superb.criterion in make_task(task, superb).measures
        rates[task] = superb.learning_rate
    assert rates == {"asr": 1e-4, "sid": 1e-1, "se": 1e-4, "ss": 1e-4}


# As they stand in the sources: s3prl's downstream/asr/config.yaml, voxceleb1/config.yaml,
# enhancement_stft/configs/cfg_voicebank.yaml, separation_stft/configs/cfg.yaml, and those of
# MiniSUPERB, whose se and ss are enhancement_stft2 and separation_stft2. Learning rates of superb
# are the paper's. Batches of asr hold 32, which the bucketing of both halves (dataset.py: longer
# than 2 000 samples), and those of sid 8, accumulated four times. Where a file does not name it,
# the epsilon is that of the optimizer: 1e-8 of torch's Adam, 1e-7 of their own AdamW
# (optimizers.py), whose weight decay is 0. STFT: size, window, hop; without a hop in v1, 320.
RECIPES = {
    "asr": {
        "superb": (200_000, 16, 1e-4, 1e-8, 2_000),
        "minisuperb": (20_000, 16, 1e-4, 1e-8, 20_000),
    },
    "sid": {
        "superb": (200_000, 32, 1e-1, 1e-8, 5_000),
        "minisuperb": (20_000, 32, 1e-3, 1e-8, 2_000),
    },
    "se": {
        "superb": (150_000, 8, 1e-4, 1e-7, 1_250),
        "minisuperb": (10_000, 8, 1e-3, 1e-7, 1_000),
    },
    "ss": {
        "superb": (150_000, 8, 1e-4, 1e-7, 2_000),
        "minisuperb": (15_000, 8, 1e-3, 1e-7, 1_500),
    },
}
V1_MASKS = (896, 3, 0.5, (512, 512, 320), "relu", "phase", "linear", "squared")
HEADS = {
    ("asr", "superb"): (1024, 1024, 2, 0.2),
    ("asr", "minisuperb"): (256, 256, 3, 0.2),
    ("sid", "superb"): (256,),
    ("sid", "minisuperb"): (256,),
    ("se", "superb"): V1_MASKS,
    ("ss", "superb"): V1_MASKS,
    ("se", "minisuperb"): (
        256,
        3,
        0.1,
        (512, 400, 160),
        "sigmoid",
        "magnitude",
        "log1p",
        "absolute",
    ),
    ("ss", "minisuperb"): (256, 3, 0.1, (1024, 1024, 320), "sigmoid", "phase", "log1p", "squared"),
}


@pytest.mark.parametrize(("task", "preset"), HEADS)
def test_presets_are_those_of_the_sources_in_every_field(task, preset):
    settings = read_preset(task, preset)
    steps, batch, rate, epsilon, validated = RECIPES[task][preset]
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (steps, batch, rate)
    assert (settings.weight_decay, settings.epsilon, settings.clip) == (0, epsilon, 1)
    assert (settings.validate_every or settings.save_every) == validated
    assert settings.normalize  # DAISY's own eq. (4)
    assert settings.crop_seconds == (8 if task == "sid" else 0)
    head = tuple(
        tuple(value.values()) if isinstance(value, dict) else value
        for value in settings.head.values()
    )
    assert head == HEADS[task, preset]
    if task == "asr":
        assert AsrSettings(**settings.head).augment == SpecAugment(5, 4, 50, 2, 40)


def test_a_preset_file_of_ones_own(tmp_path):
    own = tmp_path / "own.toml"
    text = PRESETS.read_text(encoding="utf-8")
    table = text[text.index("[sid.superb]") : text.index("[sid.minisuperb]")]
    own.write_text(table.replace("sid.superb", "sid.mine").replace("200_000", "7"))
    assert read_preset("sid", str(own)).steps == 7
    with pytest.raises(InputError, match=r"one table \[asr.NAME\] was wanted, found none"):
        read_preset("asr", str(own))
    own.write_text(table.replace("steps", "stepz"))
    with pytest.raises(InputError, match="unknown settings stepz"):
        read_preset("sid", str(own))
    masks = text[text.index("[se.superb]") : text.index("[se.minisuperb]")]
    for wrong, said in (("relu", "activation is 'sofmax'"), ("hop = 320", "hop is 300")):
        right = {"relu": "sofmax", "hop = 320": "hop = 300"}[wrong]
        own.write_text(masks.replace(wrong, right))
        with pytest.raises(InputError, match=said):
            make_task("se", read_preset("se", str(own)))
    own.write_text("[sid.mine\n")
    with pytest.raises(InputError, match="not a readable TOML file"):
        read_preset("sid", str(own))
    with pytest.raises(InputError, match="no preset 'tiny' for sid; there are superb, minisuperb"):
        read_preset("sid", "tiny")


def test_targets_of_each_task(tmp_path):
    made_corpora.librispeech(tmp_path / "ls", "train-clean-100", 1, 3)
    made_corpora.libri2mix(tmp_path / "mix", {"train-100": 2})
    crops = [Crop(1, 0, 9_600), Crop(0, 0, 0)]
    asr = make_task("asr", read_preset("asr", "superb"))
    examples = asr.open(str(tmp_path / "ls"), "train")
    rows = asr.targets(examples, crops, slice(None), 16_000)["characters"]
    assert greedy_text(np.repeat(rows[0], 2)) == "CAT SAT ON"
    assert rows[0][rows[0] > 0][-1] == CHARACTERS.index("</s>")
    assert not rows[1].any()
    ss = make_task("ss", read_preset("ss", "superb"))
    examples = ss.open(str(tmp_path / "mix"), "train")
    found = ss.targets(examples, crops, slice(None), 16_000)
    assert found["samples"].tolist() == [9_600, 0]
    np.testing.assert_allclose(found["sources"].sum(axis=1), found["mixture"], atol=1e-4)
    assert not found["mixture"][1].any()
    assert not found["mixture"][0, 9_600:].any()


# ---- real files ----


@needs_speech
def test_real_corpora_open():
    corpus = open_corpus(REAL / "LibriSpeech", ["dev-clean-mini"])
    texts = transcripts(REAL / "LibriSpeech", corpus.names)
    rate = sum(map(len, texts)) / (corpus.lengths.sum() / 16_000)
    assert 8 < rate < 20  # characters a second
    parts = [open_voxceleb(REAL / "VoxCeleb1", "iden_split.txt", part) for part in "123"]
    assert [len(part.corpus.names) for part in parts] == [156, 39, 39]
    mix = open_libri2mix(REAL / "Libri2Mix", "dev")
    total = mix.read_sources(0).sum(axis=0)
    mixture = mix.corpus.read(0, 0, len(total))
    np.testing.assert_allclose(total, mixture, atol=2 / 32_768)
    train = open_voicebank(REAL / "noisy-vctk-16k", "trainset_28spk", without=["p226", "p287"])
    assert len(train.corpus.names) == 12
