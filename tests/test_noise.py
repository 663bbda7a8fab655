"""Mixing noise into speech, and corpora of such mixtures."""

import itertools
import json
import math
import platform

import made_corpora
import numpy as np
import pytest
import soundfile
import sounds
from made_corpora import Arrays
from programs import run_here

from daisy_jax.data.corpus import Selection, open_corpus
from daisy_jax.data.mixing import active_power, cut_noise, last_offset, mix
from daisy_jax.data.noisy_corpus import (
    CLEAN,
    RECIPES,
    Draw,
    NoisyCorpus,
    draw_noises,
    draw_snrs,
    drawn,
    noise_part,
    part_for,
    read_speakers,
    speaker,
    unknown_speakers,
)
from daisy_jax.data.noisy_folder import read_log
from daisy_jax.data.transcripts import transcripts
from daisy_jax.errors import InputError
from daisy_jax.reporting import strictly


def bits(samples):
    """As a 16-bit file holds them."""
    return (np.round(np.asarray(samples) * 32_768) / 32_768).astype(np.float32)


def noises(seconds=(0.3, 2.0, 5.0)):
    rng = np.random.default_rng(1)
    return Arrays(
        **{f"n{i}": bits(0.1 * rng.standard_normal(int(16_000 * s))) for i, s in enumerate(seconds)}
    )


def speech(count=6, gain=1.0):
    made = {f"u{i}": bits(gain * sounds.syllables(0.8 + 0.2 * i, i)) for i in range(count)}
    return Arrays(**made)


def decibels(power):
    return 10 * math.log10(power)


# ---- levels ----


def p56(samples):
    """ITU-T P.56 sample by sample, with its own names."""
    g, hangover, margin = math.exp(-1 / (16_000 * 0.03)), 3_200, 15.9
    c = [2.0**-15 * 2**j for j in range(15)]
    a, h = [0] * 15, [hangover] * 15
    p = q = sq = 0.0
    for x in map(float, samples):
        sq += x * x
        p = g * p + (1 - g) * abs(x)
        q = g * q + (1 - g) * p
        for j in range(15):
            if q >= c[j]:
                a[j] += 1
                h[j] = 0
            elif h[j] < hangover:
                a[j] += 1
                h[j] += 1
    before = None
    for j in range(15):
        if not a[j]:
            break
        level, threshold = 10 * math.log10(sq / a[j]), 20 * math.log10(c[j])
        if level - threshold <= margin:
            assert before is not None
            share = (before[0] - before[1] - margin) / (before[0] - before[1] - level + threshold)
            return before[0] + share * (level - before[0])
        before = level, threshold
    raise AssertionError("never active")


@pytest.mark.parametrize("seed", range(3))
def test_the_active_level_is_that_of_p56(seed):
    rng = np.random.default_rng(seed)
    voice = sounds.syllables(2.0, seed)
    pauses = [np.zeros(rng.integers(2_000, 20_000), np.float32) for _ in range(2)]
    samples = np.concatenate([pauses[0], voice, pauses[1], 0.3 * voice])
    assert decibels(active_power(samples)) == pytest.approx(p56(samples), abs=1e-9)


def test_silence_around_speech_does_not_count():
    voice = sounds.syllables(10.0, 5)
    silence = np.zeros(20 * 16_000, np.float32)
    padded = np.concatenate([silence, voice, silence])
    assert decibels(active_power(padded) / active_power(voice)) == pytest.approx(
        0, abs=0.2
    )  # hangover
    assert decibels(np.mean(padded**2) / np.mean(voice**2)) < -6
    assert active_power(padded) >= np.mean(padded.astype(np.float64) ** 2)


def test_the_active_level_of_a_tone_is_its_power_and_of_silence_zero():
    tone = 0.3 * np.sin(np.arange(64_000) / 3)
    assert decibels(active_power(tone) / np.mean(tone**2)) == pytest.approx(0, abs=0.1)
    assert active_power(np.zeros(1_000)) == 0
    assert active_power(0.25 * tone) == pytest.approx(active_power(tone) / 16, rel=1e-9)


def test_an_active_level_means_louder_noise_for_speech_with_pauses():
    voice = np.concatenate([sounds.syllables(2.0, 3), np.zeros(48_000, np.float32)])
    noise = np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    added = mix(voice, noise, 5.0, "active").astype(np.float64) - voice
    assert decibels(active_power(voice) / np.mean(added**2)) == pytest.approx(5, abs=1e-3)
    usual = mix(voice, noise, 5.0).astype(np.float64) - voice
    assert np.mean(added**2) > 1.5 * np.mean(usual**2)


# ---- what is drawn ----


def test_a_draw_is_a_digest_of_seed_and_key():
    # printf '0\nnoise\na/b.flac\n0' | sha256sum
    assert drawn(0, "noise", "a/b.flac", 0) == 0x2A760C4BAABFE986
    assert drawn(1, "noise", "a/b.flac", 0) != drawn(0, "noise", "a/b.flac", 0)


def test_an_utterances_noise_depends_on_nothing_but_its_name_length_and_the_seed():
    corpus, recordings = speech(), noises()
    whole = draw_noises(corpus, recordings, 3)
    order = np.array([4, 0, 5])
    assert draw_noises(Selection(corpus, order), recordings, 3) == [whole[i] for i in order]
    assert whole != draw_noises(corpus, recordings, 4)
    assert len({draw.noise for draw in whole}) > 1


def test_long_recordings_are_cropped_and_short_ones_looped():
    corpus, recordings = speech(), noises()
    for seed in range(10):
        draws = draw_noises(corpus, recordings, seed)
        for (index, offset), length in zip(draws, corpus.lengths, strict=True):
            available = recordings.lengths[index]
            if available >= length:
                assert 0 <= offset <= available - length
            assert 0 <= offset < available
            found = cut_noise(recordings, index, offset, int(length))
            endless = np.tile(recordings.recordings[index], 30)
            np.testing.assert_array_equal(found, endless[offset : offset + length])
    assert [last_offset(10, 4), last_offset(4, 4), last_offset(4, 10)] == [6, 3, 3]


def test_a_silent_cut_is_never_drawn():
    half = np.concatenate([np.zeros(64_000), 0.1 * np.ones(8_000)])
    recordings = Arrays(half=half, silent=np.zeros(50_000))
    corpus = speech()
    for seed in range(5):
        for (index, offset), length in zip(
            draw_noises(corpus, recordings, seed), corpus.lengths, strict=True
        ):
            assert np.any(cut_noise(recordings, index, offset, int(length)))
    with pytest.raises(InputError, match="u0: 100 cuts of noise were all silent"):
        draw_noises(corpus, Arrays(silent=np.zeros(50_000)), 0)


def test_a_recording_that_cannot_be_read_is_said_and_another_one_drawn(left_out):
    class Broken(Arrays):
        def read(self, index, start, samples):
            if index == 1:
                raise InputError("n1: broken")
            return super().read(index, start, samples)

    whole = noises()
    broken = Broken(**dict(zip(whole.names, whole.recordings, strict=True)))
    draws = draw_noises(speech(), broken, 0)
    assert set(left_out) == {"n1: broken"}
    assert 1 not in {draw.noise for draw in draws}
    with pytest.raises(InputError, match="n1: broken"), strictly():
        draw_noises(speech(), broken, 0)


def test_speakers_that_are_not_known_are_counted_where_noise_is_speech():
    voice = np.ones(800)
    known = Arrays(**{"1-2-0000.flac": voice})
    assert unknown_speakers(known, noises(), {}) == ""
    assert unknown_speakers(known, known, {}) == ""
    unnamed = Arrays(**{"a.wav": voice})
    assert "speakers of 1 of 1 utterances and of 0 of 1" in unknown_speakers(unnamed, known, {})
    musan = Arrays(**{"speech/librivox/a.wav": voice})
    assert "speakers of 0 of 1 utterances and of 1 of 1" in unknown_speakers(known, musan, {})
    assert unknown_speakers(known, musan, {"a": "7"}) == ""


def test_nobody_is_mixed_with_himself():
    voice = bits(sounds.syllables(0.5))
    corpus = Arrays(**{f"{s}/7/{s}-7-{n:04}.flac": voice for s in range(1, 6) for n in range(9)})
    recordings = Arrays(**{f"{s}-9-0000.flac": voice for s in range(1, 6)}, **{"x.wav": voice})
    table = {"x": "3"}
    for seed in range(4):
        for name, draw in zip(
            corpus.names, draw_noises(corpus, recordings, seed, table), strict=True
        ):
            assert speaker(recordings.names[draw.noise], table) != speaker(name, table)
    alone = Arrays(**{"2-9-0000.flac": voice, "2-9-0001.flac": voice})
    with pytest.raises(InputError, match=r"2-7-0000\.flac: every recording .* its speaker, 2"):
        draw_noises(corpus, alone, 0)


def test_speakers_are_told_by_name_or_by_a_table(tmp_path):
    assert speaker("test-clean/61/70968/61-70968-0000.flac", {}) == "61"
    assert speaker("wav/id10270/video/00001.wav", {}) == "id10270"
    assert speaker("speech/librivox/speech-librivox-0000.wav", {}) is None
    (tmp_path / "utt2spk").write_text("speech-librivox-0000 61\nspeech/b.wav 62\n\n")
    table = read_speakers(tmp_path / "utt2spk")
    assert speaker("speech/librivox/speech-librivox-0000.wav", table) == "61"
    assert speaker("speech/b.wav", table) == "62"
    (tmp_path / "bad").write_text("one two three\n")
    with pytest.raises(InputError, match="'one two three' is not a name and a speaker"):
        read_speakers(tmp_path / "bad")


@pytest.mark.parametrize(
    ("count", "expected"), [(10, (4, 3, 2, 1)), (2_620, (1048, 786, 524, 262))]
)
def test_the_papers_recipe_has_its_shares(count, expected):
    names = [f"u{number}" for number in range(count)]
    levels = draw_snrs(names, RECIPES["paper"], 0)
    assert tuple(np.sum(levels == snr) for snr in (CLEAN, 10, 5, 0)) == expected
    np.testing.assert_array_equal(
        draw_snrs(names[::-1], RECIPES["paper"], 0), levels[::-1]
    )  # by name, not by place
    assert np.any(draw_snrs(names, RECIPES["paper"], 1) != levels)


# ---- mixtures ----


def test_mixtures_are_16_bit_and_have_their_ratio():
    corpus, recordings = speech(), noises()
    draws = draw_noises(corpus, recordings, 0)
    snrs = np.array([CLEAN, 20, 10, 5, 0, -5])
    noisy = NoisyCorpus(corpus, recordings, draws, snrs)
    for index, snr in enumerate(snrs):
        length = int(corpus.lengths[index])
        clean, mixed = corpus.recordings[index], noisy.read(index, 0, length)
        np.testing.assert_array_equal(mixed, bits(mixed))
        if snr == CLEAN:
            np.testing.assert_array_equal(mixed, clean)
            continue
        added = mixed.astype(np.float64) - clean
        assert decibels(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.02)
        part = noisy.read(index, 1_000, 500)
        np.testing.assert_array_equal(part, mixed[1_000:1_500])


def test_beyond_full_scale_all_of_it_is_made_quieter():
    corpus, recordings = speech(gain=2.5), noises()
    draws = draw_noises(corpus, recordings, 0)
    noisy = NoisyCorpus(corpus, recordings, draws, np.full(6, -5.0))
    scales = []
    for index, clean in enumerate(corpus.recordings):
        mixed, scale = noisy.mixed(index)
        scales.append(scale)
        assert np.max(np.abs(mixed)) <= 32_767 / 32_768
        added = mixed.astype(np.float64) / scale - clean
        assert decibels(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(-5, abs=0.02)
        if scale < 1:
            assert np.max(np.abs(mixed)) == pytest.approx(1, abs=1e-4)
            assert np.sum(np.abs(mixed) > 0.999) < 3  # a peak, and not a plateau
    assert min(scales) < 1


def test_clean_speech_beyond_full_scale_is_made_quieter_too():
    loud = 1.5 * np.sin(np.arange(8_000) / 9)
    noisy = NoisyCorpus(Arrays(a=loud), noises(), [Draw(0, 0)], np.array([CLEAN]))
    mixed, scale = noisy.mixed(0)
    assert scale == pytest.approx(32_767 / 32_768 / np.max(np.abs(loud)), rel=1e-6)
    np.testing.assert_allclose(mixed, loud * scale, atol=0.51 / 32_768)


def test_the_level_of_a_corpus_may_be_the_active_one():
    voice = np.concatenate([sounds.syllables(1.5, 3), np.zeros(24_000, np.float32)])
    noisy = NoisyCorpus(Arrays(a=voice), noises(), [Draw(2, 0)], np.array([5.0]), "active")
    mixed, scale = noisy.mixed(0)
    added = mixed.astype(np.float64) / scale - voice
    assert decibels(active_power(voice) / np.mean(added**2)) == pytest.approx(5, abs=0.02)


def test_silent_speech_stays_silent():
    noisy = NoisyCorpus(
        Arrays(a=np.zeros(8_000)), noises(), draw_noises(speech(1), noises(), 0), np.array([0.0])
    )
    assert not np.any(noisy.read(0, 0, 8_000))


# ---- train/noisy.py ----


def make(*arguments):
    return run_here("train/noisy.py", *arguments)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    made_corpora.librispeech(folder / "LibriSpeech", "train-clean-100", 2, 5)
    made_corpora.librispeech(folder / "LibriSpeech", "test-clean", 2, 2)
    rng = np.random.default_rng(0)
    for number in range(4):
        path = folder / "MUSAN" / "noise" / "free" / f"noise-{number}.wav"
        sounds.write(path, 0.2 * rng.standard_normal(9_000 * (number + 1)))
    return folder


@pytest.fixture(scope="module")
def paper(corpora):
    """The paper's recipe."""
    arguments = ["--data", corpora / "LibriSpeech", "--noise", corpora / "MUSAN" / "noise"]
    arguments += ["--splits", "train-clean-100", "test-clean", "--output", corpora / "noisy"]
    done = make(*arguments)
    assert done.returncode == 0, done.stderr
    return arguments, done.stdout


def test_a_noisy_corpus_is_in_the_clean_ones_layout(corpora, paper):
    log = read_log(corpora / "noisy")
    assert f"{len(log)} files" in paper[1]
    for split, count in (("train-clean-100", 10), ("test-clean", 4)):
        clean, noisy = (open_corpus(corpora / n, [split]) for n in ("LibriSpeech", "noisy"))
        assert noisy.names == clean.names
        np.testing.assert_array_equal(noisy.lengths, clean.lengths)
        assert transcripts(corpora / "noisy", noisy.names) == transcripts(
            corpora / "LibriSpeech", clean.names
        )
        assert sum(row.name in noisy.names for row in log) == count
    assert sorted(row.snr for row in log if row.name.startswith("train")) == sorted(
        [CLEAN] * 4 + [10.0] * 3 + [5.0] * 2 + [0.0]
    )


def test_training_and_test_hear_different_recordings(corpora, paper):
    log = read_log(corpora / "noisy")
    heard = {
        part: {row.noise for row in log if row.name.startswith(part) and row.noise}
        for part in ("train", "test")
    }
    assert all(heard.values())
    assert not heard["train"] & heard["test"]
    said = json.loads((corpora / "noisy" / "mixtures.json").read_text())["noise_parts"]
    assert said["train-clean-100"]["part"] == "train"
    assert said["test-clean"]["recordings"].startswith("1 utterances")


@pytest.mark.parametrize("count", [3, 4, 10, 61])
def test_parts_of_the_noise_share_nothing_and_leave_nothing_out(count):
    names = [f"n{number}" for number in range(count)]
    recordings = Arrays(**dict.fromkeys(names, np.ones(9, np.float32)))
    turned = Arrays(**dict.fromkeys(reversed(names), np.ones(9, np.float32)))
    seen = set()
    for seed in (0, 1):
        parts = {
            name: noise_part(recordings, name, seed).names for name in ("train", "dev", "test")
        }
        assert sorted(itertools.chain(*parts.values())) == sorted(names)
        assert len(parts["dev"]) == len(parts["test"]) == max(1, round(count / 10))
        assert len(parts["train"]) >= len(parts["test"])
        for name, found in parts.items():
            assert set(noise_part(turned, name, seed).names) == set(found)
        seen.add(tuple(parts["test"]))
    assert len(seen) == 2 or count < 10
    with pytest.raises(InputError, match="too few recordings of noise"):
        noise_part(Selection(recordings, np.arange(2)), "test", 0)


@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train-clean-100", "train"),
        ("dev-clean", "dev"),
        ("test-other", "test"),
        ("LibriSpeech/test-clean", "test"),
        ("testimony", "train"),
        ("test_clean", "test"),
        ("dev2", "dev"),
        ("", "train"),
    ],
)
def test_a_splits_name_says_which_noise_it_hears(split, part):
    assert part_for(split) == part


def test_each_file_can_be_made_again_from_its_line_of_the_log(corpora, paper):
    quieter = 0
    for row in read_log(corpora / "noisy"):
        clean, _ = soundfile.read(corpora / "LibriSpeech" / row.clean)
        written, rate = soundfile.read(corpora / "noisy" / row.name)
        assert rate == 16_000
        if row.snr == CLEAN:
            assert (row.noise, row.scale) == ("", 1.0)
            np.testing.assert_array_equal(written, clean)
            continue
        noise, _ = soundfile.read(corpora / "MUSAN" / "noise" / row.noise)
        cut = np.tile(noise, 20)[row.offset : row.offset + len(clean)]
        gain = np.sqrt(np.mean(clean**2) / np.mean(cut**2) / 10 ** (row.snr / 10))
        expected = (clean + gain * cut) * row.scale
        assert np.max(np.abs(written - expected)) <= 0.51 / 32_768
        quieter += row.scale < 1
    assert f"{quieter} made quieter" in paper[1]


def test_what_is_there_is_not_made_again_and_other_settings_are_refused(corpora, paper):
    before = {path: path.stat().st_mtime_ns for path in (corpora / "noisy").rglob("*.*")}
    again = make(*paper[0])
    assert (again.returncode, again.stdout) == (0, paper[1])
    assert before == {path: path.stat().st_mtime_ns for path in (corpora / "noisy").rglob("*.*")}
    other = make(*paper[0], "--seed", 1)
    assert other.returncode == 1
    assert "holds mixtures of other settings (seed); give another folder" in other.stderr


def test_the_same_seed_gives_the_same_files_and_an_interrupted_folder_is_finished(corpora, paper):
    second = corpora / "again"
    arguments = [*paper[0][:-1], second]
    assert make(*arguments).returncode == 0
    first = corpora / "noisy"
    for path in first.rglob("*.flac"):
        found = soundfile.read(second / path.relative_to(first))[0]
        np.testing.assert_array_equal(found, soundfile.read(path)[0])
    assert (second / "mixtures.tsv").read_text() == (first / "mixtures.tsv").read_text()
    (second / "mixtures.tsv").unlink()
    next(second.rglob("*.flac")).unlink()
    with pytest.raises(InputError, match=r"no mixtures\.tsv there"):
        read_log(second)
    assert make(*arguments).returncode == 0
    assert (second / "mixtures.tsv").read_text() == (first / "mixtures.tsv").read_text()
    assert len(list(second.rglob("*.flac"))) == 14


def test_what_a_kill_left_is_no_other_folder(corpora, paper, tmp_path):
    (tmp_path / "out" / f".{platform.node()}-999999999-abcdefgh.partial").mkdir(parents=True)
    assert make(*paper[0][:-1], tmp_path / "out").returncode == 0


def test_files_that_are_gone_or_cut_are_made_again(corpora, paper, tmp_path):
    arguments = [*paper[0][:-1], tmp_path / "out"]
    assert make(*arguments).returncode == 0
    gone, cut, *others = sorted((tmp_path / "out").rglob("*.flac"))
    contents = {path: path.read_bytes() for path in (gone, cut)}
    gone.unlink()
    cut.write_bytes(contents[cut][:2])
    before = {path: path.stat().st_mtime_ns for path in others}
    assert make(*arguments).returncode == 0
    assert {path: path.read_bytes() for path in contents} == contents
    assert {path: path.stat().st_mtime_ns for path in others} == before


def test_a_folder_inside_the_clean_corpus_is_refused(corpora, paper):
    done = make(*paper[0][:-1], corpora / "LibriSpeech" / "noisy")
    assert done.returncode == 1
    assert "of which it would be a part; give a folder elsewhere" in done.stderr


def test_every_level_is_a_split_of_its_own(corpora):
    output = corpora / "levels"
    arguments = ["--data", corpora / "LibriSpeech", "--noise", corpora / "MUSAN" / "noise"]
    arguments += ["--splits", "test-clean/", "--recipe", "every", "--output", output]
    done = make(*arguments, "--level", "active")
    assert done.returncode == 0, done.stderr
    clean = open_corpus(corpora / "LibriSpeech", ["test-clean"])
    heard = {}
    for level in ("clean", "10dB", "5dB", "0dB"):
        corpus = open_corpus(output, [f"test-clean-{level}"])
        assert transcripts(output, corpus.names) == transcripts(
            corpora / "LibriSpeech", clean.names
        )
    for row in read_log(output):
        if row.snr != CLEAN:
            heard.setdefault(row.clean, set()).add((row.noise, row.offset))
    assert len(heard) == 4
    assert all(len(each) == 1 for each in heard.values())  # the same noise at all levels


def test_bad_files_are_left_out_and_missing_folders_named(corpora, tmp_path):
    source = tmp_path / "speech"
    sounds.speech_folder(source, 3, (0.5, 0.9))
    whole = source / "utterance0.flac"
    sounds.cut(whole, source / "cut.flac")
    arguments = ["--data", source, "--output", tmp_path / "out"]
    done = make(*arguments, "--noise", corpora / "MUSAN" / "noise")
    assert done.returncode == 0
    assert "cut.flac" in done.stderr
    assert len(read_log(tmp_path / "out")) == 3
    done = make(*arguments, "--noise", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'nothing'}: no such folder")
    done = make(*arguments, "--noise", corpora / "MUSAN" / "noise", "--splits", "test-clean")
    assert done.returncode == 1
    assert "no split test-clean there" in done.stderr


def test_what_is_in_the_way_is_not_overwritten(corpora, tmp_path):
    source = sounds.speech_folder(tmp_path / "speech", 2, (0.5, 0.6))
    before = {path: path.read_bytes() for path in source.rglob("*.flac")}
    done = make("--data", source, "--noise", corpora / "MUSAN", "--output", source)
    assert done.returncode == 1
    assert f"{source}: holds something else; give a new folder" in done.stderr
    assert before == {path: path.read_bytes() for path in source.rglob("*.flac")}


@pytest.mark.parametrize("snrs", [["nan"], ["5000"], ["-inf"]])
def test_levels_that_mean_nothing_are_refused(corpora, tmp_path, snrs):
    arguments = ["--data", corpora / "LibriSpeech", "--noise", corpora / "MUSAN"]
    arguments += ["--output", tmp_path / "out", "--recipe", "every", f"--snrs={snrs[0]}"]
    done = make(*arguments)
    assert done.returncode == 1
    assert "give dB from -100 to 100" in done.stderr


def test_two_utterances_of_one_name_are_refused(tmp_path, corpora):
    for suffix in (".wav", ".flac"):
        sounds.write(tmp_path / "speech" / f"a{suffix}", sounds.syllables(0.5))
    done = make(
        "--data", tmp_path / "speech", "--noise", corpora / "MUSAN", "--output", tmp_path / "out"
    )
    assert done.returncode == 1
    assert "a.flac: two utterances would have this name" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_log_says_where_it_is_broken(tmp_path):
    (tmp_path / "mixtures.tsv").write_text("name\tclean\n")
    with pytest.raises(InputError, match="not a log of mixtures"):
        read_log(tmp_path)
    head = "name\tclean\tsnr\tnoise\toffset\tscale\n"
    (tmp_path / "mixtures.tsv").write_text(head + "a.flac\ta.flac\tloud\tn.wav\t0\t1\n")
    with pytest.raises(InputError, match=r"'a\.flac\\ta\.flac\\tloud.*is no line of it"):
        read_log(tmp_path)
