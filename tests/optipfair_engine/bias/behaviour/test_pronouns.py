"""WinoBias and Winogender: read as published, and equal to scoring one sentence at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from optipfair_engine.bias.behaviour.pronouns import score_winobias, score_winogender
from optipfair_engine.bias.prompts.catalogued import read_catalogued
from optipfair_engine.bias.prompts.pronouns import PronounItem, read_winobias, read_winogender
from optipfair_engine.errors import InvalidOptionError, NonFiniteResultError
from optipfair_engine.options.suites import entry_of
from optipfair_engine.workflow.bias import BiasOptions, bias_checkpoint
from tests.suite_files import OCCUPATIONS, winobias, winogender
from tests.tiny import write_checkpoint


def files(name: str, folder: Path) -> list[Path]:
    return [folder / file.name for file in entry_of(name).files]


def one_by_one(model, tokenizer, item: PronounItem) -> float:
    """Log p(pro) − log p(anti), a call of the model for each."""
    totals = []
    for text in (item.pro, item.anti):
        ids = torch.tensor(
            [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]]
        )
        with torch.no_grad():
            log_p = model(ids).logits.double().log_softmax(dim=-1)
        totals.append(float(log_p[0, :-1].gather(1, ids[0, 1:, None]).sum()))
    return totals[0] - totals[1]


def test_winobias_is_read_with_numbers_marks_and_scenes(tmp_path) -> None:
    found = read_winobias(files("winobias", winobias(tmp_path)))
    assert (len(found.items), found.left_out) == (32, {})
    first = found.items[0]
    assert first.pro == "the doctor said that the writer sat and she was late ."
    assert first.anti == "the doctor said that the writer sat and he was late ."
    assert (first.gender, first.occupation, first.kind) == ("female", "doctor", "type1")
    assert found.items[1].pro.startswith("The doctor and")
    # the writer is never marked, so a scene is known by those that are
    assert {item.template for item in found.items} == {"doctor", "teacher", "lawyer", "baker"}


def test_lines_that_are_no_pair_are_left_out_and_counted(tmp_path, llama, tokenizer) -> None:
    folder = winobias(tmp_path)
    path = folder / "anti_stereotyped_type1.txt.dev"
    path.write_text(path.read_text().replace("writer sat and [he]", "writer walked and [he]", 1))
    found = read_winobias(files("winobias", folder))
    assert len(found.items) == 31
    warnings = score_winobias(llama, tokenizer, found).scores.warnings
    assert any("Left out: 1 items whose two sentences differ in more than pronouns" in w for w in warnings)
    path.write_text("\n".join(path.read_text().split("\n")[:3]))
    with pytest.raises(InvalidOptionError, match=r"has 8 sentences and .* 3: they must correspond"):
        read_winobias(files("winobias", folder))
    path.write_text("the doctor said that she was late\n" * 8)
    with pytest.raises(InvalidOptionError, match="line 1: no occupation and pronoun are marked"):
        read_winobias(files("winobias", folder))


def test_winogender_takes_the_stereotype_from_the_shares(tmp_path) -> None:
    found = read_winogender(files("winogender", winogender(tmp_path)))
    assert len(found.items) == 16
    by_kind = {(item.occupation, item.kind): item for item in found.items}
    doctor = by_kind["doctor", "occupation"]
    assert (doctor.gender, doctor.percent_female) == ("female", 60.5)
    assert " she " in doctor.pro and " he " in doctor.anti
    assert by_kind["lawyer", "participant"].gender == "male"
    stats = tmp_path / "occupations-stats.tsv"
    stats.write_text(stats.read_text().replace("60.5", "50.0"))
    even = read_winogender(files("winogender", tmp_path))
    assert (len(even.items), even.left_out) == (12, {"of as many women as men": 4})
    stats.write_text(stats.read_text().replace("doctor", "surgeon"))
    with pytest.raises(InvalidOptionError, match="says nothing of 'doctor'"):
        read_winogender(files("winogender", tmp_path))
    stats.write_text(stats.read_text().replace("50.0", "many"))
    with pytest.raises(InvalidOptionError, match="share of 'surgeon' is no percentage: 'many'"):
        read_winogender(files("winogender", tmp_path))


@pytest.mark.parametrize("suite", ["winobias", "winogender"])
def test_scores_are_those_of_one_sentence_at_a_time(suite, llama, tokenizer, tmp_path) -> None:
    make, read, score = {
        "winobias": (winobias, read_winobias, score_winobias),
        "winogender": (winogender, read_winogender, score_winogender),
    }[suite]
    found = read(files(suite, make(tmp_path)))
    result = score(llama, tokenizer, found)
    odds = np.array([one_by_one(llama, tokenizer, item) for item in found.items])
    parts = {"overall": lambda item: item.kind != "participant"}
    parts |= {"female": lambda item: parts["overall"](item) and item.gender == "female"}
    parts |= {"baker": lambda item: parts["overall"](item) and item.occupation == "baker"}
    parts |= {kind: lambda item, kind=kind: item.kind == kind for kind in ("type2", "participant")}
    scores = {"overall": result.scores.overall, **result.scores.categories}
    for name in parts.keys() & scores.keys():
        own = odds[[parts[name](item) for item in found.items]]
        gap = 100 * ((own > 0).mean() - (own < 0).mean())
        assert scores[name].items == len(own)
        assert scores[name].gap.value == pytest.approx(gap)
        assert scores[name].log_odds.value == pytest.approx(own.mean(), abs=1e-5)
    assert {"overall", "female", "baker"} <= scores.keys()
    assert scores["overall"].templates == 4
    assert scores["overall"].gap.low <= scores["overall"].gap.value <= scores["overall"].gap.high
    assert scores["baker"].gap.low is None or scores["baker"].templates > 1


def test_the_correlation_is_that_of_occupations(llama, tokenizer, tmp_path) -> None:
    found = read_winogender(files("winogender", winogender(tmp_path)))
    result = score_winogender(llama, tokenizer, found).scores
    means, shares = [], []
    for who, *_ in OCCUPATIONS:
        own = [item for item in found.items if item.occupation == who and item.kind == "occupation"]
        sign = 1 if own[0].gender == "female" else -1
        means.append(sign * np.mean([one_by_one(llama, tokenizer, item) for item in own]))
        shares.append(own[0].percent_female)
    assert result.correlation.value == pytest.approx(np.corrcoef(means, shares)[0, 1], abs=1e-4)


def test_a_model_that_overflows_has_no_gap(make_llama, tokenizer, tmp_path) -> None:
    broken = make_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("inf"))
    found = read_winobias(files("winobias", winobias(tmp_path)))
    with pytest.raises(NonFiniteResultError, match="no finite number"):
        score_winobias(broken, tokenizer, found)


def test_both_in_one_job_with_a_baseline(llama, make_llama, tokenizer, tmp_path) -> None:
    suites = tmp_path / "suites"
    winobias(suites / "winobias")
    winogender(suites / "winogender")
    assert len(read_catalogued("winobias", suites).items) == 32
    model = write_checkpoint(tmp_path / "model", llama, tokenizer)
    other = write_checkpoint(tmp_path / "other", make_llama(seed=5), tokenizer)
    options = BiasOptions(suites=["winobias", "winogender"])
    metrics = bias_checkpoint(model, tmp_path / "out", options, baseline=other, suites_folder=suites)
    own = bias_checkpoint(other, tmp_path / "own", options, suites_folder=suites)
    assert metrics["winobias.gap_baseline"] == own["winobias.gap"]
    assert metrics["winogender.correlation_low"] <= metrics["winogender.correlation"]
    assert {"winobias.type1.gap", "winobias.doctor.gap", "winogender.female.log_odds"} <= metrics.keys()
    assert metrics["winobias.preference_change_low"] <= metrics["winobias.preference_change"]
    assert metrics["winobias.outcome"] in ("better", "worse", "inconclusive")
    summary = json.loads((tmp_path / "out" / "bias_summary.json").read_text())
    assert summary["suites"]["winobias"]["comparison"]["overall"]["clusters"] == 4
    assert "WinoBias items" in summary["conclusion"] or "WinoBias: " in summary["conclusion"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert ">WinoBias</h2>" in report and "Correlation with the share of women" in report
