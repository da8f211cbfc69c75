"""Files of published suites' forms, with words of our own that ``tests.tiny``'s models know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CROWS = ",sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(
    f"{i},the male {w} sat,the female {w} sat,stereo,{c}\n"
    for i, (w, c) in enumerate([("man", "gender"), ("doctor", "race-color"), ("baker", "race-color")])
)
STEREO = "".join(
    json.dumps(
        {
            "type": "intrasentence", "target": t, "bias_type": "gender", "context": f"the BLANK {t} sat",
            "stereotype": f"the male {t} sat", "anti-stereotype": f"the female {t} sat",
            "unrelated": f"the , {t} sat",
        }
    )
    + "\n"
    for t in ("man", "doctor", "baker")
)  # fmt: skip

OCCUPATIONS = [
    ("doctor", "she", "he"),
    ("teacher", "he", "she"),
    ("lawyer", "he", "she"),
    ("baker", "she", "he"),
]


def winobias(folder: Path) -> Path:
    """Eight files of a form and of words of our own: occupation, other person, pronoun of each side."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, end in (("type1", "was late"), ("type2", "walked home early")):
        for part, adverb in (("dev", "said"), ("test", "thought")):
            for side in ("pro", "anti"):
                lines = []
                for number, (who, stereotyped, other) in enumerate(OCCUPATIONS, 1):
                    pronoun = stereotyped if side == "pro" else other
                    lines.append(f"{number} [the {who}] {adverb} that the writer sat and [{pronoun}] {end} .")
                    lines.append(f"{number} [The  {who}] and the writer {adverb} that [{pronoun}] {end} .")
                (folder / f"{side}_stereotyped_{kind}.txt.{part}").write_text("\n".join(lines) + "\n")
    return folder


def winogender(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["sentid\tsentence"]
    shares = ["occupation\tbergsma_pct_female\tbls_pct_female\tbls_year"]
    for number, (who, stereotyped, _) in enumerate(OCCUPATIONS):
        share = 60 + 5 * number if stereotyped == "she" else 10 + 5 * number
        shares.append(f"{who}\t1.0\t{share}.5\t2016")
        for other in ("man", "person"):
            for answer, end in (("0", "was late"), ("1", "walked home")):
                for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they")):
                    text = f"The {who} said that the {other} sat and {pronoun} {end} ."
                    rows.append(f"{who}.{other}.{answer}.{gender}.txt\t{text}")
    (folder / "all_sentences.tsv").write_text("\n".join(rows) + "\n")
    (folder / "occupations-stats.tsv").write_text("\n".join(shares) + "\n")
    return folder


def honest(folder: Path, hurtful: Sequence[str]) -> Path:
    """Templates about two groups, and a lexicon with these words at the level that counts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["template_masked\traw\tidentity\tnumber\tmf\ttype"]
    for group, who in (("female", "woman"), ("female", "nurse"), ("male", "man"), ("male", "baker")):
        for beginning in ("sat near the", "walked to the", "is the"):
            raw = f"[I] {beginning} [M]"
            rows.append(f"the {who} {beginning} [M].\t{raw}\tthe {who}\tsingular\t{group}\toccupation")
    words = ["id\tpos\tcategory\tstereotype\tlemma\tlevel", "EN0\tn\tan\tno\tmild\tinclusive"]
    words += [f"EN{n}\tn\tcds\tno\t{word}\tconservative" for n, word in enumerate(hurtful, 1)]
    (folder / "en_template.tsv").write_text("\n".join(rows) + "\n")
    (folder / "hurtlex_EN.tsv").write_text("\n".join(words) + "\n")
    return folder


def write_suites(folder: Path) -> Path:
    """CrowS-Pairs, StereoSet, WinoBias and Winogender, each in a folder of its name."""
    for name, file, content in (
        ("crows_pairs", "crows_pairs_anonymized.csv", CROWS),
        ("stereoset", "stereoset.jsonl", STEREO),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(content)
    winobias(folder / "winobias")
    winogender(folder / "winogender")
    return folder
