"""The noise study: its numbers, and eval/noise.py from speech to the page."""

import json
import re

import made_corpora
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import sounds
from made_models import SMALL, made_model
from programs import run_here
from scipy.stats import rankdata

import daisy_jax
from daisy_jax.console.pages import html_page, table
from daisy_jax.cost import multiply_adds
from daisy_jax.data.corpus import open_corpus
from daisy_jax.data.noisy_corpus import CLEAN, NoisyCorpus, draw_noises
from daisy_jax.data.noisy_folder import NoisyFile, read_log, write_log
from daisy_jax.errors import InputError
from daisy_jax.exits import ExitRule
from daisy_jax.study.conditions import Condition
from daisy_jax.study.level_errors import difference, level_sums, level_values, over_seeds
from daisy_jax.study.noise_study import (
    Later,
    check,
    later_than_clean,
    rank_correlation,
    snr_correlation,
    spread,
    table_correlation,
)
from daisy_jax.tasks.metrics import RESAMPLES
from daisy_jax.whole_files import write_results

RULE = ExitRule("every layer", 1.0, np.ones(3, bool))


def leaving_at(layers, kind="clean", snr=CLEAN, names=None, agreement=None):
    """Entropies below 1 from the wanted layer on; 4 stands for nowhere."""
    layers = np.asarray(layers)
    entropy = np.where(np.arange(1, 4) >= layers[:, None], 0.5, 2.0) - 0.01 * np.arange(3)
    names = [f"{n}.wav" for n in range(len(layers))] if names is None else names
    agreement = np.tile([0.6, 0.8, 1.0], (len(layers), 1)) if agreement is None else agreement
    samples = 8_000 + 1_000 * np.arange(len(layers))
    return Condition(
        kind, snr, names, samples, entropy.astype(np.float32), np.asarray(agreement, np.float32)
    )


# ---- numbers ----


def test_where_a_condition_leaves_and_what_that_saves():
    condition = leaving_at([1, 2, 2, 4])
    found = spread(condition, condition, RULE, SMALL)
    assert found.exit_layers == [1, 2, 2, 3]
    assert found.mean == 2
    assert found.standard_deviation == pytest.approx(np.sqrt(0.5))
    assert (found.min, found.max, found.forced) == (1, 3, 0.25)
    assert found.final_labels == pytest.approx((0.6 + 0.8 + 0.8 + 1.0) / 4)
    spent = sum(
        int(multiply_adds(SMALL, n, k))
        for n, k in zip(condition.samples, [1, 2, 2, 3], strict=True)
    )
    full = sum(int(multiply_adds(SMALL, n, 3, np.zeros(3, bool))) for n in condition.samples)
    assert found.multiply_adds_saved == pytest.approx(1 - spent / full)


def test_versions_of_the_same_utterances_are_compared_in_pairs():
    clean = leaving_at([1, 2, 1, 2] * 8)
    # Everybody one layer later: no doubt at all, though the layers themselves differ. Another
    # order, and other endings.
    order = np.random.default_rng(0).permutation(32)
    layers = np.array([2, 3, 2, 3] * 8)[order]
    later = leaving_at(layers, "codec", None, [f"{n}.ogg" for n in order])
    later = later._replace(samples=clean.samples[order] + 80)
    assert later_than_clean(clean, later, RULE) == Later(1.0, 1.0, 1.0, 32)
    # Other utterances: drawn apart, as the formula for two means has it.
    apart = later._replace(names=[f"x{n}" for n in range(32)])
    found = later_than_clean(clean, apart, RULE)
    error = np.sqrt(2 * np.var([1, 2]) / 32)
    assert (found.value, found.pairs) == (1.0, 0)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, 50), rng.integers(0, 9, 50)
    expected = scipy.stats.spearmanr(first, second)[0]
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rank_correlation(first, np.ones(50)))
    table = np.zeros((2, 4, 9), int)
    np.add.at(table[0], (first, second), 1)
    table[1, 2] = 1
    found = table_correlation(table)
    assert found[0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[1])


def test_an_interval_is_that_of_all_levels_of_utterances_that_are_drawn():
    rng = np.random.default_rng(1)
    snrs = (CLEAN, 5.0, 10.0, 5.0)  # one of them twice
    exits = rng.integers(1, 4, (4, 30)) + np.array([[0], [1], [0], [1]]) * rng.integers(0, 2, 30)
    exits = np.minimum(exits, 3)
    names = [f"{number:02}" for number in range(30)]
    levels = [leaving_at(row, "noise", snr, names) for row, snr in zip(exits, snrs, strict=True)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(30, size=30)
        first = np.repeat(snrs, 30)
        drawn.append(scipy.stats.spearmanr(rankdata(first), exits[:, chosen].ravel())[0])
    expected = scipy.stats.spearmanr(rankdata(np.repeat(snrs, 30)), exits.ravel())[0]
    wanted = (expected, *np.quantile(drawn, [0.025, 0.975]))
    np.testing.assert_allclose(snr_correlation(levels, RULE), wanted, atol=1e-12)


def test_noisier_and_later_is_a_correlation_of_minus_one():
    levels = [
        leaving_at([1] * 6),
        leaving_at([2] * 6, "noise", 10.0),
        leaving_at([3] * 6, "noise", 0.0),
    ]
    np.testing.assert_allclose(snr_correlation(levels, RULE), (-1, -1, -1), atol=1e-12)
    one = ExitRule("one", 1.0, np.array([False, True, False]))
    assert np.isnan(snr_correlation(levels, one)).all()
    # Without any effect the interval holds zero.
    rng = np.random.default_rng(0)
    drawn = [leaving_at(rng.integers(1, 4, 200), "noise", snr) for snr in (CLEAN, 10.0, 5.0)]
    value, low, high = snr_correlation(drawn, RULE)
    assert low < 0 < high
    assert low < value < high


def test_utterances_that_miss_at_a_level_are_left_out_of_the_correlation():
    noisy = leaving_at([2, 2], "noise", 0.0, ["1.wav", "0.wav"])
    found = snr_correlation([leaving_at([1, 1, 3]), noisy], RULE)
    assert found[0] == pytest.approx(-1)
    assert np.isnan(found[1:]).all()  # two utterances are too few for an interval
    nobody = noisy._replace(names=["a", "b"])
    assert np.isnan(snr_correlation([leaving_at([1, 1, 3]), nobody], RULE)).all()


def test_what_is_not_sensible_is_named():
    clean = leaving_at([1, 2, 2, 2])
    assert check(clean, clean, RULE).problems == []
    forced = check(clean, leaving_at([4, 4, 4, 2]), RULE)
    assert (forced.forced, forced.problems) == (0.75, ["most are forced out"])
    first = check(clean, leaving_at([1, 1, 1, 2]), RULE)
    assert first.problems[0] == "most leave at the first layer"
    assert first.lost == pytest.approx(0.75 - 0.65)
    assert first.problems[1].startswith("labels are less settled")
    rising = leaving_at([2, 2, 2, 2])
    rising = rising._replace(entropy=rising.entropy[:, ::-1].copy())
    assert "entropy does not fall with depth" in check(clean, rising, RULE).problems


def sums_of(rows, log):
    """As they come out of utterances.parquet: an array a column."""
    return level_sums({name: np.asarray([row[name] for row in rows]) for name in rows[0]}, log)


def recognised(errors, words, layers, snrs=(CLEAN, 10.0, 5.0, 0.0)):
    """Rows and log of utterances, each at all levels: arrays [utterances, levels]."""
    rows, log = [], []
    for (utterance, level), wrong in np.ndenumerate(errors):
        name = f"test-{level}/{utterance}.flac"
        log.append(NoisyFile(name, f"{utterance}.flac", snrs[level], "n.wav", 0, 1.0))
        rows.append(
            {
                "id": name,
                "wer_total": float(wrong),
                "wer_weight": float(words[utterance]),
                "exit_layer": int(layers[utterance, level]),
                "multiply_adds": int(100 * layers[utterance, level]),
                "full_multiply_adds": 1200,
            }
        )
    return rows, log


def test_error_rates_by_level_and_their_two_averages():
    rng = np.random.default_rng(0)
    errors, words = rng.integers(0, 9, (40, 4)), rng.integers(5, 20, 40)
    layers = rng.integers(1, 13, (40, 4))
    rows, log = recognised(errors, words, layers)
    sums = sums_of([rows[i] for i in rng.permutation(len(rows))], log)
    levels, plain, weighted = level_values(sums, "errors", "words")
    rates = errors.sum(axis=0) / words.sum()
    np.testing.assert_allclose([value for value, _, _ in levels], rates)
    assert plain[0] == pytest.approx(rates.mean())
    assert weighted is not None
    assert weighted[0] == pytest.approx(rates @ [0.4, 0.3, 0.2, 0.1])
    for value, low, high in (*levels, plain, weighted):
        assert low < value < high
    mean_layers = level_values(sums, "layers", "utterances")[0]
    np.testing.assert_allclose([value for value, _, _ in mean_layers], layers.mean(axis=0))
    assert level_values(sums, "spent", "full")[1][0] == pytest.approx(layers.mean() / 12)


def test_the_difference_of_two_rules_is_paired():
    rng = np.random.default_rng(1)
    errors, words = rng.integers(0, 9, (40, 4)), np.full(40, 10)
    layers = np.ones((40, 4))
    ours = sums_of(*recognised(errors, words, layers))
    worse = sums_of(*recognised(errors + 1, words, layers))
    apart = difference(worse, ours)
    for found in (apart.plain, apart.weighted, *apart.levels):
        np.testing.assert_allclose(found, (0.1, 0.1, 0.1))
    fewer = sums_of(*recognised(errors[:39], words[:39], layers[:39]))
    with pytest.raises(InputError, match="were evaluated on different utterances"):
        difference(fewer, ours)


def test_seeds_are_averaged_and_widen_the_interval():
    rng = np.random.default_rng(2)
    words, layers = rng.integers(5, 20, 40), np.ones((40, 4))
    each = [np.minimum(rng.integers(0, 3, (40, 4)) + 2 * seed, words[:, None]) for seed in range(5)]
    alone = [sums_of(*recognised(errors, words, layers)) for errors in each]
    together = over_seeds(alone)
    found = level_values(together, "errors", "words")
    rates = np.stack([errors.sum(axis=0) / words.sum() for errors in each])
    np.testing.assert_allclose([value for value, _, _ in found.levels], rates.mean(axis=0))
    # The standard error of a mean of five independent heads, and a part that comes from utterances.
    apart = rates.mean(axis=1).std() / np.sqrt(5)
    assert found.plain.high - found.plain.low > 0.9 * 2 * 1.96 * apart
    one = level_values(alone[2], "errors", "words").plain
    assert found.plain.high - found.plain.low > 2 * (one.high - one.low)
    minus = difference(together, alone[0])
    assert minus.plain.value == pytest.approx(rates.mean() - rates[0].mean())
    assert minus.plain.low < minus.plain.value < minus.plain.high
    fewer = sums_of(*recognised(each[0][:39], words[:39], layers[:39]))
    with pytest.raises(InputError, match="were evaluated on different utterances"):
        over_seeds([alone[0], fewer])


def test_a_mixture_of_levels_needs_no_utterance_at_two_of_them():
    rows, log = recognised(np.array([[1, 0, 0, 0]] * 4), np.full(4, 10), np.ones((4, 4)))
    kept = [rows[0], rows[5], rows[10], rows[15]]  # an utterance a level
    levels, plain, weighted = level_values(sums_of(kept, log), "errors", "words")
    assert [value for value, _, _ in levels] == [0.1, 0, 0, 0]
    assert plain[0] == pytest.approx(0.025)
    assert weighted is not None
    assert weighted[0] == pytest.approx(0.04)
    clean_only = level_values(sums_of([rows[0]], log), "errors", "words")
    assert clean_only[2] is None  # not the paper's levels
    with pytest.raises(InputError, match=r"not in the log of the mixtures"):
        sums_of([{**rows[0], "id": "other.flac"}], log)


# ---- eval/noise.py ----


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A corpus, noise, a condition of its own, and a calibrated model."""
    folder = tmp_path_factory.mktemp("study")
    made_corpora.librispeech(folder / "LibriSpeech", "test-clean", 2, 3)
    rng = np.random.default_rng(0)
    for kind in ("noise", "speech"):
        for number in range(3):
            path = folder / "MUSAN" / kind / f"{kind}-{number}.wav"
            sounds.write(path, 0.2 * rng.standard_normal(12_000))
    for path in (folder / "LibriSpeech").rglob("*.flac"):
        quiet = 0.1 * daisy_jax.audio.load(path)
        sounds.write(folder / "far" / path.relative_to(folder / "LibriSpeech"), quiet)
    model = made_model()
    clean = open_corpus(folder / "LibriSpeech")
    batch = daisy_jax.audio.pad_batch(
        [clean.read(index, 0, int(length)) for index, length in enumerate(clean.lengths)]
    )
    calibration = daisy_jax.calibrate(model, [batch], "made speech")
    daisy_jax.save(model.replace(calibration=calibration), folder / "model")
    return folder


def noise_script(there, *arguments):
    usual = ["--data", there / "LibriSpeech", "--model", there / "model", "--accelerator=cpu"]
    return run_here("eval/noise.py", *usual, "--entropies", there / "entropies", *arguments)


@pytest.fixture(scope="module")
def study(there):
    """A whole study with its page, and what it said."""
    arguments = ["--musan", there / "MUSAN", "--kinds", "noise", "speech", "--snrs", 10, 0]
    arguments += ["--conditions", f"far={there / 'far'}", "--ratios", 1, "--output", there / "out"]
    done = noise_script(there, *arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def clean_entropies(there):
    """Those of clean speech are there, so that nobody says that they are made."""
    done = noise_script(there)
    assert done.returncode == 0, done.stderr


WHOLE = pytest.mark.slow("a whole study from end to end, with its pictures")


@WHOLE
def test_the_study_agrees_with_encode(there, study):
    said = "speech: the speakers of 0 of 6 utterances and of 3 of 3 recordings are not"
    assert said in study.stderr
    model = daisy_jax.load(there / "model")
    assert model.calibration is not None
    threshold = daisy_jax.exit_threshold(model.calibration.mean_entropy, 1.0)
    found = json.loads((there / "out" / "results.json").read_text())
    rule = found["rules"][0]
    assert (rule["span"], rule["ratio"]) == ("every layer", 1)
    assert rule["threshold"] == pytest.approx(float(threshold))
    clean = open_corpus(there / "LibriSpeech")
    noise = open_corpus(there / "MUSAN", ["noise"])
    draws = draw_noises(clean, noise, 0)
    corpora = {"clean": clean, "far": open_corpus(there / "far")}
    for snr in (10, 0):
        corpora[f"noise {snr} dB"] = NoisyCorpus(clean, noise, draws, np.full(6, float(snr)))
    for name, corpus in corpora.items():
        waveforms = [corpus.read(index, 0, int(n)) for index, n in enumerate(corpus.lengths)]
        encoded = daisy_jax.encode(
            model, *daisy_jax.audio.pad_batch(waveforms), threshold=threshold
        )
        full = daisy_jax.encode(model, *daisy_jax.audio.pad_batch(waveforms), threshold=-np.inf)
        assert rule["exits"][name]["exit_layers"] == encoded.exit_layer.tolist()
        assert rule["exits"][name]["forced"] == pytest.approx(float(np.mean(encoded.forced)))
        expected = np.asarray(full.entropy).mean(axis=0)
        np.testing.assert_allclose(found["conditions"][name]["mean_entropy"], expected, rtol=1e-5)
    captions = [line for line in study.stdout.splitlines() if line.startswith("ratio 1, ")]
    assert len(captions) == len(found["rules"]) + 1  # above every table of exits and of checks
    assert all("from clean made speech; on LibriSpeech" in line for line in captions)


@WHOLE
def test_every_utterance_and_every_mixture_is_kept(there, study):
    rows = pyarrow.parquet.read_table(there / "out" / "utterances.parquet").to_pylist()
    assert len(rows) == 6 * (1 + 4 + 1)
    assert {row["condition"] for row in rows} == {"clean", "noise", "speech", "far"}
    assert all(len(row["entropy"]) == 3 for row in rows)
    log = read_log(there / "out")
    assert len(log) == 6 * 4
    assert all((there / "MUSAN" / row.noise).is_file() for row in log)


@WHOLE
def test_a_second_study_needs_no_trunk(there, study, monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("the trunk was run again")

    monkeypatch.setattr("daisy_jax.features.contents.tapped_layers", refuse)
    arguments = ["--musan", there / "MUSAN", "--kinds", "noise", "--snrs", 0, 10]
    done = noise_script(there, *arguments, "--ratios", 0.3, 0.9)
    assert done.returncode == 0, done.stderr
    assert "### Ratio 0.3" in done.stdout
    # Other samples are another condition, though names and lengths are the same.
    for changed in (["--seed", 1], ["--level", "active"]):
        with pytest.raises(AssertionError, match="the trunk was run again"):
            noise_script(there, *arguments, *changed)
    louder = tmp_path / "far"
    for path in (there / "far").rglob("*.flac"):
        sounds.write(louder / path.relative_to(there / "far"), 5 * daisy_jax.audio.load(path))
    given = ["--conditions", f"far={louder}"]
    with pytest.raises(AssertionError, match="the trunk was run again"):
        noise_script(there, *given)


@pytest.mark.slow("a whole study from end to end, with its pictures")
def test_what_cannot_be_read_is_said_each_time_and_pairs_are_counted(there, tmp_path):
    for path in (there / "far").rglob("*.flac"):
        target = tmp_path / "bad" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    spoilt = min((tmp_path / "bad").iterdir())
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    spoilt.write_bytes(content)
    for _ in range(2):
        arguments = ["--conditions", f"bad={tmp_path / 'bad'}", "--ratios", 1]
        done = noise_script(there, *arguments, "--output", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert spoilt.name in done.stderr
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        exits = found["rules"][0]["exits"]["bad"]
        # In another layout, but of the same names: five pairs.
        assert (exits["utterances"], exits["later_than_clean"]["pairs"]) == (5, 5)


@WHOLE
def test_the_page_needs_no_other_file(there, study):
    page = (there / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*|http-equiv", "", page)
    text = (there / "out" / "report.md").read_text()
    assert page.count("<table>") == text.count("| --- |") > 5
    assert "A small set: 6 utterances." in page


def test_a_page_escapes_what_it_is_given(tmp_path):
    lines = table(["name", "a|b"], [["<script>alert(1)</script>", "1"]])
    page = html_page("<t>", "\n".join(lines), tmp_path, [])
    assert "<script>" not in page
    assert "<title>&lt;t&gt;</title>" in page
    assert "a|b</th>" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--conditions", "far"], "'far' is no NAME=FOLDER"),
        (["--ratios", "1.2"], "each must lie between 0 and 1"),
        (["--snrs", "inf"], "clean speech is included anyway"),
        (["--snrs", "5000"], "give dB from -100 to 100"),
        (["--conditions", "a=b", "a=c"], "condition a: the name is taken"),
        (["--conditions", "clean=b"], "condition clean: the name is taken"),
        (["--conditions", "a|b=c"], "a name of letters, digits, spaces"),
        (["--musan", "MUSAN", "--kinds", "rain"], "no split rain there; found noise, speech"),
        (["--asr", "nothing"], "nothing: not evaluated; python eval/downstream.py nothing"),
    ],
)
def test_mistakes_are_one_line(there, clean_entropies, arguments, said):
    arguments = [there / "MUSAN" if each == "MUSAN" else each for each in arguments]
    done = noise_script(there, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_calibration_clean_speech_must_be_named(there, tmp_path):
    model = daisy_jax.load(there / "model")
    daisy_jax.save(model.replace(calibration=None), tmp_path / "bare")
    arguments = ["--model", tmp_path / "bare", "--ratios", 1]
    done = noise_script(there, *arguments)
    assert done.returncode == 1
    assert "no calibration; give --threshold-from" in done.stderr
    source = there / "LibriSpeech"
    done = noise_script(there, *arguments, "--threshold-from", source)
    assert done.returncode == 0, done.stderr
    clean = open_corpus(source)
    waveforms = [clean.read(index, 0, int(length)) for index, length in enumerate(clean.lengths)]
    found = daisy_jax.calibrate(model, [daisy_jax.audio.pad_batch(waveforms)])
    threshold = daisy_jax.exit_threshold(found.mean_entropy, 1.0)
    assert f"threshold {float(threshold):.4f} nats from clean {source}" in done.stdout


EVALUATED = {
    **dict.fromkeys(("run", "task", "title", "device"), "asr"),
    **dict.fromkeys(("whole", "decoder"), None),
    **dict.fromkeys(("training_utterances", "utterances", "hours"), 24),
    "upstream": {"path": "", "digest": "", "layers": 3, "dim": 8},
    "measures": {"wer": {"title": "WER", "unit": "%", "higher_is_better": False, "scale": 100.0}},
    "unprocessed": {},
    "mean_entropy": [],
    "exits": {
        **{"format": "daisy_jax_exits/1", "exit_counts": [], "forced_counts": []},
        **{"mean": 2.0, "min": 1, "max": 3},
    },
}
"""What is not looked at here of results.json."""
TRAINED = {"steps": 1, "batch_size": 1, "learning_rate": 0.1}
SETTINGS = TRAINED | {"preset": "superb", "ratio": None, "full": False, "settings": TRAINED}
ROW = {
    **dict.fromkeys(("value", "forced", "time_saved"), None),
    **dict.fromkeys(("mean_exit_layer", "layers_saved", "multiply_adds_saved"), 0.5),
    "measures": {"wer": {"value": 0.5, "interval": [0.4, 0.6], "undefined": 0}},
}


@pytest.mark.slow("a whole study from end to end, with its pictures")
def test_recognition_under_noise_is_read_from_evaluated_runs(there, tmp_path):
    rng = np.random.default_rng(0)
    words = np.full(6, 10)
    static, log = recognised(rng.integers(3, 9, (6, 4)), words, np.full((6, 4), 2))
    adaptive, _ = recognised(rng.integers(0, 3, (6, 4)), words, rng.integers(1, 4, (6, 4)))
    write_log(tmp_path, log)
    again, _ = recognised(rng.integers(3, 9, (6, 4)), words, np.full((6, 4), 2))
    runs = {"layer": ("static layer 2", static), "ratio": ("ratio 1", adaptive)}
    runs["layer-again"] = ("static layer 2", again)  # with another seed
    for name, (trained, rows) in runs.items():
        kinds = {trained: "own"}
        if name == "ratio":
            kinds |= {"span mean": "span", "best layer of each": "oracle"}
        result = EVALUATED | {
            "data": str(tmp_path),
            "trained": trained,
            "trained_on": "made",
            "tested_on": "made test",
            "settings": SETTINGS
            | {"layer": None if name == "ratio" else 2, "seed": int(name == "layer-again")},
            "rows": [
                ROW | {"rule": rule, "kind": kind, "threshold": 0.5, "allowed": [1, 2, 3]}
                for rule, kind in kinds.items()
            ],
        }
        place = tmp_path / name / "evaluation"
        write_results(place, result, [{"rule": rule, **row} for rule in kinds for row in rows])
    arguments = ["--asr", *(tmp_path / name for name in runs), "--output", tmp_path / "out"]
    done = noise_script(there, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())["asr"]
    assert [row["rule"] for row in found] == ["static layer 2", "ratio 1", "ratio 1, span mean"]
    wrong = np.reshape([row["wer_total"] for row in adaptive], (6, 4)).sum(axis=0) / 60
    np.testing.assert_allclose([each[0] for each in found[1]["wer"][0]], wrong)
    assert [row["seeds"] for row in found] == [[0, 1], [0], [0]]
    wrong = np.sum([[row["wer_total"] for row in rows] for rows in (static, again)]) / 480
    assert found[0]["wer"][1][0] == pytest.approx(wrong)
    assert found[0]["minus_static"] is None
    assert found[1]["minus_static"][0][2] < 0  # surely fewer errors
    text = done.stdout
    assert "minus static layer 2" in text
    assert f"| static layer 2 | layers 1 to 3, threshold 0.5000 | {'2.00 | ' * 5}" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 5  # entropies, three ratios, figure 5
    arguments[2] = arguments[1]
    done = noise_script(there, *arguments)
    assert done.returncode == 1
    assert "static layer 2: two runs have seed 0; give one" in done.stderr
    # Runs that differ in more than their seeds are no mean of anything.
    arguments[2] = place = tmp_path / "layer-again"
    content = json.loads((place / "evaluation/results.json").read_text())
    content["settings"]["learning_rate"] = 0.2
    write_results(place / "evaluation", content, [{"rule": "static layer 2", **r} for r in again])
    assert noise_script(there, *arguments[:3], *arguments[-2:]).returncode == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["asr"]
    assert [row["seeds"] for row in found] == [[0], [1]]
    # Runs that were tested on other files are not put beside each other.
    arguments[2] = tmp_path / "ratio"
    place = tmp_path / "layer" / "evaluation"
    result = json.loads((place / "results.json").read_text()) | {"tested_on": "made dev"}
    write_results(place, result, [{"rule": "static layer 2", **row} for row in static])
    done = noise_script(there, *arguments)
    assert done.returncode == 1
    assert "give runs of one corpus, evaluated on the same files" in done.stderr
