"""What users hand over as calibration data becomes one kind of batch, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from optipfair_engine.calibration import text as T
from optipfair_engine.errors import CalibrationError

IDS = torch.arange(12).reshape(3, 4)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


class WordTokenizer:
    """One id a word; enough of a tokenizer for windows."""

    pad_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


SAME = {
    "dict": {"input_ids": IDS, "attention_mask": MASK},
    "encoding": BatchEncoding({"input_ids": IDS, "attention_mask": MASK}),
    "tuple": (IDS, MASK),
    "list of tensors": [IDS, MASK],
    "nested lists": {"input_ids": IDS.tolist(), "attention_mask": MASK.tolist()},
    "columns": {"input_ids": list(IDS.T), "attention_mask": list(MASK.T), "text": ["a", "b", "c"]},
    "samples": [
        {"input_ids": i.tolist(), "attention_mask": m.tolist()} for i, m in zip(IDS, MASK, strict=True)
    ],
}


@pytest.mark.parametrize("kind", SAME)
def test_every_batch_kind_means_the_same(kind: str) -> None:
    (batch,) = T.iter_batches([SAME[kind]])
    assert torch.equal(batch["input_ids"], IDS)
    assert torch.equal(batch["attention_mask"], MASK)


def test_a_bare_tensor_is_all_unmasked() -> None:
    (batch,) = T.iter_batches([IDS])
    assert torch.equal(batch["attention_mask"], torch.ones_like(IDS))


def test_collated_dataset_rows_of_lists_are_transposed_back() -> None:
    rows = [{"input_ids": i.tolist(), "attention_mask": m.tolist()} for i, m in zip(IDS, MASK, strict=True)]
    batches = list(T.iter_batches(DataLoader(rows, batch_size=2)))
    assert torch.equal(torch.cat([b["input_ids"] for b in batches]), IDS)
    assert torch.equal(torch.cat([b["attention_mask"] for b in batches]), MASK)


def test_labels_are_left_out() -> None:
    (batch,) = T.iter_batches([{"input_ids": IDS, "labels": IDS}])
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "empty"),
        (DataLoader(TensorDataset(IDS[:0]), batch_size=2), "empty"),
        ([{"attention_mask": MASK}], "no input_ids"),
        ([{"input_ids": [[1, 2], [3]]}], "not a rectangle"),
        ([{"input_ids": IDS, "attention_mask": MASK[:, :2]}], "unequal shapes"),
        ([7], "expected a dict"),
    ],
)
def test_refuses_what_is_no_batch(loader: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        list(T.iter_batches(loader))


def test_fully_masked_data_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no unmasked token"):
        T.as_calibration_set([{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}])


def test_windows_follow_the_stated_protocol() -> None:
    text = " ".join("x" * (i % 9 + 1) for i in range(1000))
    ids = T.encode(WordTokenizer(), text)
    windows = T.windows_from_text(WordTokenizer(), text, 100, 4)
    assert windows == [ids[i * 300 : i * 300 + 100] for i in range(4)]


def test_windows_never_overlap_nor_repeat() -> None:
    windows = T.windows_from_ids(list(range(25)), 10, 40)
    assert windows == [list(range(10)), list(range(15, 25))]


def test_a_short_text_gives_one_short_window() -> None:
    assert T.windows_from_ids([1, 2, 3], 10, 4) == [[1, 2, 3]]


def test_padding_is_masked_and_not_counted() -> None:
    found = T.calibration_from_windows([[5, 6, 7], [8]], batch_size=2)
    assert found.tokens == 4
    assert found.batches[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_mixture_takes_windows_in_proportion() -> None:
    long, short = "a " * 900, "bb " * 100
    found = T.calibration_from_texts(
        [long, short], WordTokenizer(), max_length=10, num_samples=50, batch_size=1
    )
    firsts = [int(b["input_ids"][0, 0]) for b in found.batches]
    assert (firsts.count(1), firsts.count(2)) == (45, 5)
    assert found.num_texts == 2


def test_jsonl_is_one_sample_a_line(tmp_path: Path) -> None:
    file = tmp_path / "mix.jsonl"
    file.write_text("\n".join(json.dumps({"text": "w " * n}) for n in (3, 30)) + "\n", encoding="utf-8")
    found = T.load_calibration_file(file, WordTokenizer(), max_length=10, num_samples=8)
    assert (found.num_samples, found.tokens, found.source) == (2, 13, "mix.jsonl")


def test_txt_is_cut_into_windows_and_called_narrow(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("w " * 100, encoding="utf-8")
    found = T.load_calibration_file(file, WordTokenizer(), max_length=10, num_samples=8)
    assert found.num_samples == 8
    assert any("one narrow text (book.txt)" in warning for warning in found.warnings(4))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "must end in"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.jsonl", b"{}\n", "line 1"),
        ("a.jsonl", b'{"text": 3}\n', "must be a string"),
    ],
)
def test_refuses_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        T.load_calibration_file(tmp_path / name, WordTokenizer())


def test_small_calibration_is_warned_of_by_tokens_per_feature() -> None:
    found = T.calibration_from_windows([[1] * 50], source="x")
    assert not found.warnings(5)
    assert "50 tokens are 8.3 per feature" in found.warnings(6)[0]


def test_labels_are_not_taken_for_a_mask() -> None:
    ids = torch.arange(12).reshape(2, 6)
    with pytest.raises(CalibrationError, match="isn't all zeros and ones"):
        list(T.iter_batches(DataLoader(TensorDataset(ids, ids), batch_size=2)))


def test_batches_of_blank_texts_alone_are_skipped() -> None:
    blank = torch.zeros(2, 0, dtype=torch.int64)
    assert [batch["input_ids"].shape for batch in T.iter_batches([blank, IDS])] == [(3, 4)]
    with pytest.raises(CalibrationError, match="no unmasked token"):
        T.as_calibration_set([blank])
