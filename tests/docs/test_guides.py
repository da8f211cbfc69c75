"""What the guides show is run: every Python and shell block of them, with a tiny model and little text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optipfair_engine.cli.app import app
from tests.tiny import byte_tokenizer, tiny_llama, tiny_model, write_checkpoint

from .blocks import PAGES, ROOT, Block, blocks

TEXT = "Structured pruning removes whole neurons, so that the smaller model is faster on any machine. "
GUIDES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("quickstart.md", "pruning.md", "bias.md"))]
#: Who runs the blocks of the other pages; the templates and schedules of CI systems are checked by schemas.
ELSEWHERE = {
    "http.md": "tests/service/ci/test_ci_recipes.py, tests/jobs/specs/test_docs.py",
    "ci.md": "tests/service/ci/test_ci_recipes.py",
    "deployment.md": "tests/deploy, tests/api/test_nginx.py",
    "operations.md": "tests/deploy/test_compose.py, tests/service/test_settings_and_folders.py",
    "CONTRIBUTING.md": "CI calls make itself",
}
#: What is said of a size or of time in a page is too much for a tiny model.
SMALL = {"100000000": "30000", "path/to/model": "model", "MODEL": "model", "PRUNED": "pruned"}
LITTLE = ["--num-samples", "2", "--max-length", "24"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models and the files that the pages name."""
    folder = tmp_path_factory.mktemp("guides")
    tokenizer = byte_tokenizer([TEXT], vocab_size=300)
    model = tiny_llama(vocab_size=300, num_hidden_layers=2, max_position_embeddings=512)
    write_checkpoint(folder / "model", model, tokenizer)
    other = tiny_llama(seed=1, vocab_size=300, num_hidden_layers=2, max_position_embeddings=512)
    write_checkpoint(folder / "pruned", other, tokenizer)
    write_checkpoint(
        folder / "mixture",
        tiny_model("qwen3_moe", vocab_size=300, num_experts=4, num_experts_per_tok=2),
        tokenizer,
    )
    (folder / "text.txt").write_text(TEXT * 60)
    pairs = [
        {"prompt1": f"The {x} was a {a} man", "prompt2": f"The {x} was a {b} man"}
        for x in ("king", "cook")
        for a, b in [("white", "black")]
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    controls = [[f"The {x} is old", f"This {x} is old"] for x in ("king", "cook")]
    (folder / "controls.jsonl").write_text("\n".join(map(json.dumps, controls)))
    with (folder / "crows_pairs_anonymized.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations"])
        rows.writerow([0, "He was late for work", "She was late for work", "stereo", "gender", "[]"])
        rows.writerow([1, "Old people are slow", "Young people are slow", "stereo", "age", "[]"])
    return folder


class Reader:
    """Someone who does what a page says, block by block, in one folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        from optipfair_engine import load_model

        self.folder, self.outputs = folder, 0
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.names: dict[str, Any] = {
            "model": load_model(str(folder / "model")),
            "tokenizer": tokenizer,
            "pairs": [("The king was tall", "The queen was tall")],
            "inputs": {**tokenizer(TEXT, return_tensors="pt"), "max_new_tokens": 2},
        }

    def follow(self, block: Block) -> None:
        if block.language == "python":
            code = block.code.replace("path/to/model", "model")
            exec(compile(code, block.name, "exec"), self.names)
            return
        for words in block.commands():
            self.run([SMALL.get(word, word) for word in words])

    def run(self, words: list[str]) -> None:
        name, verb, *rest = words
        assert name == "optipfair", f"{words}: a page's block that is run has commands of optipfair alone"
        if "EXPERTS" in rest:
            rest = ["mixture" if word == "model" else word for word in rest]
        if verb == "prune" and {"--calibration", "--preset"} & {*rest}:
            rest += LITTLE
        if "OUT" in rest and "--output-path" in rest and rest[rest.index("--output-path") + 1] == "OUT":
            self.outputs += 1
        rest = [word.replace("OUT", f"out-{self.outputs}") for word in rest]
        done = CliRunner().invoke(app, [verb, *rest])
        assert done.exit_code == 0, f"{' '.join(words)}: {done.output}{done.exception!r}"


def runnable(page: Path) -> Iterator[Block]:
    for block in blocks(page):
        if block.language in ("python", "bash") and not block.note.startswith(("not run", "run by")):
            yield block


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_what_a_guide_shows_runs(
    page: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in shelf.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optipfair_engine.bias.figures.kinds.Style.dpi", 40, raising=True)
    reader = Reader(tmp_path)
    shown = list(runnable(page))
    assert shown
    for block in shown:
        reader.follow(block)


def test_every_block_of_every_page_has_someone_who_runs_it() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("python", "bash", "sh") or page in GUIDES:
                continue
            assert page.name in ELSEWHERE, f"{block.name} is run by no test"


def test_a_note_names_what_runs_the_block() -> None:
    for page in GUIDES:
        for block in blocks(page):
            if block.note.startswith("run by "):
                assert (ROOT / block.note.removeprefix("run by ").split("::")[0]).exists(), block.name
            elif block.note.startswith("not run"):
                assert ": " in block.note, f"{block.name}: say why"
