"""Frame labels from alignments, .km files and stores; and PocketSphinx' alignments."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from made_models import SMALL, made_model
from praatio import textgrid
from programs import run_here

import daisy_jax
from daisy_jax import InputError, audio
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.labels.alignments import Interval, frame_labels_of, read_tier, write_alignment
from daisy_jax.data.labels.forced_alignment import align, align_corpus, pronunciation
from daisy_jax.features import contents
from daisy_jax.features.extract import Extractor, extract_corpus
from daisy_jax.features.label_sources import labelled_frames, open_labels
from daisy_jax.training.pretraining import masked_prediction_loss

CLIPS = {
    "reading-1": "Unless to be rather cold hearted, and rather selfish, is to be ill disposed.",
    "reading-2": "He might even have been made amiable himself",
    "reading-3": "HE WAS NOT AN ILL DISPOSED YOUNG MAN",
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return sounds.speech_folder(tmp_path_factory.mktemp("speech"), 4, (0.3, 0.8))


@pytest.fixture(scope="module")
def corpus(speech):
    return open_corpus(speech)


def aligned(folder, corpus, flat=False):
    """TextGrids in which a label changes every 0.1 s, and what each says of any time."""
    truth = {}
    for number, name in enumerate(corpus.names):
        seconds = corpus.lengths[number] / audio.SAMPLE_RATE
        starts = np.arange(0, seconds, 0.1)
        labels = [f"p{(number + n) % 5}" for n in range(len(starts))]
        ends = [*starts[1:], seconds]
        intervals = [Interval(*row) for row in zip(starts.tolist(), ends, labels, strict=True)]
        path = (folder / name).with_suffix(".TextGrid")
        path = folder / path.name if flat else path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_alignment(path, float(seconds), {"phones": intervals, "words": intervals[:1]})
        truth[name] = intervals
    return truth


# ---- alignments ----


def test_a_frame_has_the_label_of_its_middle():
    # Middles lie at 12.5, 32.5, 52.5, 72.5 and 92.5 ms.
    intervals = [Interval(0.0, 0.0325, "a"), Interval(0.0325, 0.06, "b"), Interval(0.08, 0.09, "a")]
    labels = frame_labels_of(intervals, 5, {"a": 3, "b": 7})
    assert labels.tolist() == [3, 7, 7, -1, -1]
    assert frame_labels_of([], 2, {}).tolist() == [-1, -1]


def test_a_textgrid_is_read_as_it_was_written(tmp_path):
    tiers = {
        "phones": [Interval(0.0, 0.25, 'a "quoted" one'), Interval(0.25, 1.5, "ɛ")],
        "words": [Interval(0.5, 1.0, "word")],
    }
    path = tmp_path / "one.TextGrid"
    write_alignment(path, 1.5, tiers)
    assert read_tier(path, "phones") == tiers["phones"]
    # The parts without a word are there, without a label.
    assert [each.label for each in read_tier(path, "words")] == ["", "word", ""]
    with pytest.raises(InputError, match="no tier 'states' there, but phones, words"):
        read_tier(path, "states")
    grid = textgrid.Textgrid(0, 1.5)
    grid.addTier(textgrid.PointTier("clicks", [(0.5, "x")], 0, 1.5))
    grid.save(str(path), "short_textgrid", includeBlankSpaces=True)
    with pytest.raises(InputError, match="tier 'clicks' holds points in time"):
        read_tier(path, "clicks")
    path.write_text("no TextGrid", encoding="utf-8")
    with pytest.raises(InputError, match="align it again"):
        read_tier(path, "phones")


@pytest.mark.parametrize("flat", [False, True])
def test_alignments_are_found_by_path_or_name(corpus, tmp_path, flat):
    truth = aligned(tmp_path, corpus, flat)
    found = open_labels(str(tmp_path), corpus, "phones")
    assert found.classes == ("p0", "p1", "p2", "p3", "p4")
    assert found.corpus.names == corpus.names
    for index, name in enumerate(corpus.names):
        count = int(audio.frame_count(int(corpus.lengths[index])))
        labels = found.labels.read(index, slice(1, count))
        for frame, number in enumerate(labels, 1):
            middle = (320 * frame + 200) / 16_000
            (wanted,) = [each.label for each in truth[name] if each.start <= middle < each.end]
            assert found.classes[number] == wanted
    assert labelled_frames(found) == audio.frame_count(corpus.lengths).sum()


def test_utterances_without_an_alignment_are_left_out(corpus, tmp_path, caplog):
    aligned(tmp_path, corpus)
    (tmp_path / corpus.names[1]).with_suffix(".TextGrid").unlink()
    found = open_labels(str(tmp_path), corpus, "phones")
    assert found.corpus.names == [name for n, name in enumerate(corpus.names) if n != 1]
    (record,) = caplog.records
    assert f"1 of 4 utterances have no labels and are left out, the first is {corpus.names[1]}" in (
        record.getMessage()
    )
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(InputError, match="no alignments there"):
        open_labels(str(tmp_path), corpus, "phones")
    write_alignment(tmp_path / "another.TextGrid", 1.0, {"phones": []})
    with pytest.raises(InputError, match="has no labels of these recordings"):
        open_labels(str(tmp_path), corpus, "phones")
    with pytest.raises(InputError, match="no such folder"):
        open_labels(str(tmp_path / "nowhere"), corpus, "phones")


def test_one_name_for_several_utterances_is_refused(corpus, tmp_path):
    aligned(tmp_path / "a", corpus, flat=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="is the name of several utterances"):
        open_labels(str(tmp_path), corpus, "phones")


# ---- .km files and stores ----


def km_of(folder, speech, corpus, change=lambda lines: lines):
    rng = np.random.default_rng(0)
    counts = audio.frame_count(corpus.lengths)
    labels = [rng.integers(0, 7, count) for count in counts]
    names = [f"{name}\t{length}" for name, length in zip(corpus.names, corpus.lengths, strict=True)]
    order = [2, 0, 3, 1]
    lines = [" ".join(map(str, labels[index])) for index in order]
    rows = [str(speech), *(names[index] for index in order)]
    (folder / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "train.km").write_text("\n".join(change(lines)) + "\n", encoding="utf-8")
    return labels


def test_a_km_file_goes_with_its_list(speech, corpus, tmp_path):
    labels = km_of(tmp_path, speech, corpus)
    found = open_labels(str(tmp_path / "train.km"), corpus, "")
    assert found.classes == tuple("0123456")
    for index, wanted in enumerate(labels):
        np.testing.assert_array_equal(found.labels.read(index, slice(0, len(wanted))), wanted)
    for change, said in {
        "a line less": "has 3 lines, and .*train.tsv lists 4 files",
        "a word": "is more than numbers of clusters",
        "100 a second": "numbers for the .* frames of .*; give 50 a second",
    }.items():
        changes = {
            "a line less": lambda lines: lines[1:],
            "a word": lambda lines: [*lines[:-1], "1 2 x"],
            "100 a second": lambda lines: [f"{line} {line}" for line in lines],
        }
        km_of(tmp_path, speech, corpus, changes[change])
        with pytest.raises(InputError, match=said):
            open_labels(str(tmp_path / "train.km"), corpus, "")


def test_units_of_a_store_are_labels(corpus, speech, tmp_path):
    model = made_model()
    centroids = np.random.default_rng(0).standard_normal((9, SMALL.dim)).astype(np.float32)
    extractor = Extractor(model, contents.units(centroids, 2))
    extract_corpus(tmp_path / "units", extractor, corpus, str(speech))
    found = open_labels(str(tmp_path / "units"), corpus, "")
    for index in range(len(corpus.names)):
        length = int(corpus.lengths[index])
        whole = audio.batch_of_one(corpus.read(index, 0, length))
        allowed = np.arange(1, SMALL.num_layers + 1) == 2
        hidden = np.asarray(daisy_jax.encode(model, *whole, allowed=allowed).last_hidden)[0]
        count = int(audio.frame_count(length))
        distances = np.sum((hidden[:count, None] - centroids) ** 2, axis=-1)
        np.testing.assert_array_equal(
            found.labels.read(index, slice(0, count)), np.argmin(distances, axis=1)
        )
    assert max(map(int, found.classes)) < 9


# ---- training on them ----


def test_frames_without_a_label_do_not_count():
    model, rng = made_model(), np.random.default_rng(0)
    waveform = jnp.asarray(rng.standard_normal((2, 8_000)), jnp.float32)
    lengths, frames = jnp.array([8_000, 6_000]), int(audio.frame_count(8_000))
    labels = rng.integers(0, SMALL.num_clusters, (2, frames)).astype(np.int32)
    masked = rng.random((2, frames)) < 0.5
    unknown = rng.random((2, frames)) < 0.3
    weight = jnp.float32(0.7)
    batch = (waveform, lengths, jnp.asarray(masked))
    compute = jax.jit(masked_prediction_loss)
    loss, metrics = compute(model, *batch, jnp.asarray(np.where(unknown, -1, labels)), weight)
    # Whatever stands there, a frame that nobody labelled adds nothing: sums over the others.
    totals = {}
    for kind, mask in {"accuracy": masked, "unmasked_accuracy": ~masked}.items():
        known = mask & ~unknown & (np.arange(frames) < np.array([[24], [18]]))
        each = []
        for row, frame in zip(*np.nonzero(known), strict=True):
            one = np.full((2, frames), -1, np.int32)
            one[row, frame] = labels[row, frame]
            alone, hit = compute(model, *batch, jnp.asarray(one), jnp.float32(1))
            each.append((float(alone), float(hit[kind])))
        totals[kind] = np.mean(each, axis=0)
        assert abs(float(metrics[kind]) - totals[kind][1]) < 1e-6
    wanted = totals["accuracy"][0] + 0.7 * totals["unmasked_accuracy"][0]
    assert abs(float(loss) - wanted) < 1e-5 * wanted


@pytest.mark.slow("trains from end to end")
def test_a_model_is_pretrained_on_alignments(speech, corpus, tmp_path):
    aligned(tmp_path / "aligned", corpus)
    words = ["--data", speech, "--output", tmp_path / "run", "--targets", tmp_path / "aligned"]
    words += ["--steps", 2, "--batch-size", 4, "--crop-seconds", 0.5, "--log-every", 1]
    words += ["--speeds", 0.9, 1.1, "--equalizer", 3]
    words += ["--num-layers", 2, "--dim", 32, "--ffn-dim", 32, "--num-heads", 2, "--conv-dim", 16]
    done = run_here("train/pretrain.py", *map(str, words))
    assert done.returncode == 0, done.stderr
    assert daisy_jax.load(tmp_path / "run/model").config.num_clusters == 5
    both = run_here("train/pretrain.py", *map(str, words), "--targets-from", "x")
    assert both.returncode == 1
    assert "exclude each other" in both.stderr
    faster = run_here("train/pretrain.py", *map(str, words), "--output", "x", "--speeds", "9")
    assert faster.returncode == 1
    assert "speeds is 9.0; give numbers from 0.5 to 2" in faster.stderr
    louder = run_here("train/pretrain.py", *map(str, words), "--equalizer", "-1")
    assert louder.returncode == 1
    assert "--equalizer is -1.0; give at least 0 dB" in louder.stderr


# ---- PocketSphinx ----


@pytest.mark.parametrize("clip", CLIPS)
def test_words_are_where_they_are_said(clip):
    waveform = audio.load(f"daisy_jax/samples/{clip}.flac")
    seconds = len(waveform) / 16_000
    found = align(waveform, CLIPS[clip])
    assert found.guessed == []
    words = [each.label for each in found.tiers["words"] if each.label[0] not in "<("]
    text = "".join(letter for letter in CLIPS[clip].lower() if letter.isalpha() or letter == " ")
    assert words == text.split()
    bounds = {}
    for name, intervals in found.tiers.items():
        assert intervals[0].start == 0
        assert intervals[-1].end == seconds
        ends = [each.end for each in intervals[:-1]]
        np.testing.assert_allclose([each.start for each in intervals[1:]], ends, atol=1e-9)
        bounds[name] = {round(each.start, 6) for each in intervals}
    assert bounds["words"] <= bounds["phones"] <= bounds["states"]
    # Speech is louder than what the aligner takes for silence.
    labels = frame_labels_of(
        [each._replace(label=str(each.label == "SIL")) for each in found.tiers["phones"]],
        int(audio.frame_count(len(waveform))),
        {"False": 0, "True": 1},
    )
    power = np.asarray(
        [np.mean(waveform[320 * t : 320 * t + 400] ** 2) for t in range(len(labels))]
    )
    assert np.mean(power[labels == 0]) > 10 * np.mean(power[labels == 1])


def test_an_utterance_that_cannot_be_aligned_spoils_no_other():
    waveform = audio.load("daisy_jax/samples/reading-3.flac")
    before = align(waveform, CLIPS["reading-3"])
    for text, said in {"": "cannot be read", "he was 12": "'12': cannot be read"}.items():
        with pytest.raises(InputError, match=said):
            align(waveform, text)
    with pytest.raises(InputError, match="does not fit it"):
        align(waveform[:1_600], CLIPS["reading-1"])
    assert align(waveform, CLIPS["reading-3"]) == before


def test_an_interrupted_alignment_goes_on(tmp_path, caplog):
    for clip in CLIPS:
        shutil.copy(f"daisy_jax/samples/{clip}.flac", tmp_path)
    corpus = open_corpus(tmp_path)
    texts = ["unless to be illdisposd", "12", "he was not an illdisposd yungmann"]
    files = [tmp_path / "aligned" / f"{clip}.TextGrid" for clip in CLIPS]
    assert align_corpus(corpus, texts, tmp_path / "aligned") == (1, 2)
    (record,) = caplog.records
    assert record.getMessage() == "reading-2.flac: '12': cannot be read; spell it out in words"
    assert [file.exists() for file in files] == [True, False, True]
    listed = "illdisposd\tIH L D IH S P AA S D\t2\nyungmann\tIY AH NG M AE N\t1\n"
    assert (tmp_path / "aligned/unknown_words.tsv").read_text(encoding="utf-8") == listed
    before = [files[n].read_bytes() for n in (0, 2)]
    files[2].unlink()
    files[0].write_text("stays", encoding="utf-8")
    assert align_corpus(corpus, texts, tmp_path / "aligned") == (1, 2)
    assert (files[0].read_text(encoding="utf-8"), files[2].read_bytes()) == ("stays", before[1])
    assert (tmp_path / "aligned/unknown_words.tsv").read_text(encoding="utf-8") == listed


def test_unknown_words_are_read_by_their_letters():
    assert pronunciation("Shnightrax") == "SH N AY T R AE K S"
    assert pronunciation("o'gellen") == "AA G EH L EH N"
    waveform = audio.load("daisy_jax/samples/reading-3.flac")
    found = align(waveform, "he was not an illdisposd yungmann")
    assert found.guessed == ["illdisposd", "yungmann"]
