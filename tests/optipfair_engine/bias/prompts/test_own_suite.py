"""The suite of our own: what it holds, what it reports, and how far its intervals can be trusted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from optipfair_engine.bias.prompts.own import english, spanish
from optipfair_engine.bias.prompts.own.items import own_items
from optipfair_engine.bias.prompts.questions import questions_of
from optipfair_engine.bias.prompts.suites import pair_items, templates_of
from optipfair_engine.bias.statistics.significance import bootstrap_interval, bootstrap_means
from optipfair_engine.errors import InvalidOptionError
from optipfair_engine.options.suites import entry_of, parse_metric
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

CATEGORIES = {"gender", "race", "religion", "nationality", "age", "disability", "sexual_orientation"}
SUITES = {"optipfair": english, "optipfair_es": spanish}


@pytest.mark.parametrize("name", SUITES)
def test_every_scene_is_asked_about_every_category_and_reworded_once(name: str) -> None:
    items, language = own_items(name), SUITES[name]
    assert len(set(language.TEMPLATES)) == len(language.TEMPLATES) >= 60
    assert all(template.count("{attribute}") == 1 for template in language.TEMPLATES)
    assert not any(template.rstrip().endswith((".", "?", "!")) for template in language.TEMPLATES)
    pair_items(items.pairs, "Prompt")
    pair_items(items.controls, "Control")
    assert set(language.ATTRIBUTES) == CATEGORIES == set(entry_of(name).categories)
    counts = Counter(pair.category for pair in items.pairs)
    assert set(counts.values()) == {len(language.TEMPLATES)} == {len(items.controls)}
    assert len(items.pairs) + len(items.controls) == entry_of(name).items
    assert len({(pair.first, pair.second) for pair in items.pairs}) == len(items.pairs)
    assert set(templates_of(items.pairs)) == set(language.TEMPLATES)
    for words in (*language.ATTRIBUTES.values(), language.CONTROLS):  # every pair of words has its turns
        assert len(words) <= len(language.TEMPLATES) // 10


@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
def test_95_percent_intervals_over_the_suites_templates_hold_the_truth_95_times_in_100(skewed: bool) -> None:
    pairs = own_items("optipfair").pairs
    names, rows = np.unique(np.array(templates_of(pairs)), return_inverse=True)
    random, runs, truth = np.random.default_rng(7), 1000, 3.0
    shape = (len(names), runs)
    scene = random.gamma(4, 0.25, shape) - 1 if skewed else random.normal(0, 0.5, shape)
    values = truth + scene[rows] + random.normal(0, 0.4, (len(pairs), runs))
    for category in (None, "gender"):
        chosen = [n for n, pair in enumerate(pairs) if category in (None, pair.category)]
        templates = [str(rows[n]) for n in chosen]
        means, drawn = values[chosen].mean(axis=0), bootstrap_means(values[chosen], templates, seed=1)
        intervals = [
            bootstrap_interval(float(mean), column, len(names))
            for mean, column in zip(means, drawn.T, strict=True)
        ]
        held = np.mean([interval.low <= truth <= interval.high for interval in intervals])
        assert 0.93 <= held <= 0.97, (category, held)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Two tiny models whose tokenizer reads any text of both languages."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = byte_tokenizer([pair.first for pair in own_items("optipfair").pairs], vocab_size=600)
    small = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 256}
    return (
        write_checkpoint(root / "tiny", tiny_llama(initializer_range=0.2, **small), tokenizer),
        write_checkpoint(root / "quiet", tiny_llama(initializer_range=0.02, **small), tokenizer),
    )


def test_statistics_without_prompts_ask_the_suite_and_report_every_category(models, tmp_path) -> None:
    options = BiasOptions(neuron_ranking=True, visualization_types=())
    metrics = bias_checkpoint(models[0], tmp_path / "out", options, baseline=models[1])
    assert (metrics["pairs"], metrics["control_pairs"], metrics["optipfair.templates"]) == (420, 60, 60)
    assert metrics["neurons_tested"] == 2 * 48
    for category in CATEGORIES:
        place = f"optipfair.{category}"
        assert metrics[f"{place}.mean_difference_low"] <= metrics[f"{place}.mean_difference"]
        assert metrics[f"{place}.effect_over_noise"] > 0
        assert metrics[f"{place}.bias_change"] > 0
        assert metrics[f"{place}.outcome"] == "worse"
    means = [metrics[f"optipfair.{category}.mean_difference"] for category in CATEGORIES]
    assert metrics["optipfair.mean_difference"] == pytest.approx(np.mean(means))
    assert metrics["optipfair.mean_difference"] == pytest.approx(metrics["mean_difference"])
    dotted = {n.removesuffix("_low").removesuffix("_high") for n in metrics if "." in n}
    assert all(parse_metric(name) for name in dotted if not name.endswith(".outcome"))
    report = (tmp_path / "out" / "report.html").read_text()
    assert "own, English" in report and "sexual_orientation" in report


def test_both_languages_are_asked_by_name_each_with_its_controls(tmp_path) -> None:
    asked = questions_of(BiasOptions(suites=["optipfair_es", "optipfair"]), tmp_path)
    assert Counter(pair.suite for pair in asked.pairs) == {"optipfair_es": 420, "optipfair": 420}
    assert Counter(pair.suite for pair in asked.controls) == {"optipfair_es": 60, "optipfair": 60}
    assert not asked.suites and BiasOptions(suites=["optipfair"], neuron_ranking=True, layers="all")


def test_few_pairs_stay_the_default_where_no_statistics_are_asked_for() -> None:
    assert BiasOptions().suites_asked(baseline=False) == ()
    assert BiasOptions().suites_asked(baseline=True) == ("optipfair",)
    for named in ({"prompt_pairs": [["a", "b"]]}, {"control_pairs": [["a", "b"]]}):
        assert BiasOptions(**named, neuron_ranking=True).suites_asked(baseline=True) == ()
    with pytest.raises(InvalidOptionError, match="have control pairs of their own"):
        BiasOptions(suites=["optipfair"], control_pairs=[["a", "b"]])
