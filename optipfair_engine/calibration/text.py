"""Calibration data: what users hand over (data loaders, texts, files) as one plain kind of batch.

A batch is a dict of tensors ``[samples, tokens]`` that always has ``input_ids`` and ``attention_mask``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from optipfair_engine.calibration.facts import CalibrationFacts
from optipfair_engine.errors import CalibrationError, TokenizerError

Batch = dict[str, Tensor]

#: Inputs of ``forward`` that a calibration batch may carry; labels are left out, since no loss is wanted.
FORWARD_KEYS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
)

#: Fewer calibration tokens than this per input feature, and a refit starts to fit noise (measured).
TOKENS_PER_FEATURE = 10


#: The source of samples from texts that have no name of their own.
TEXTS: Final = "texts"


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration samples with where they came from.

    ``tokens`` counts unmasked tokens; ``num_texts`` the different documents that the samples were cut from;
    ``own_samples`` those samples that the model wrote itself.
    """

    batches: Sequence[Batch]
    tokens: int
    source: str
    num_samples: int = 0
    num_texts: int = 0
    max_length: int = 0
    own_samples: int = 0
    notes: tuple[str, ...] = field(default=())

    def tokens_per_feature(self, features: int) -> float:
        """How many calibration tokens there are for each of ``features`` inputs of a refitted matrix."""
        return self.tokens / max(features, 1)

    def warnings(self, features: int) -> list[str]:
        """What a result must say when matrices with ``features`` inputs are fitted to this calibration."""
        found = list(self.notes)
        ratio = self.tokens_per_feature(features)
        if ratio < TOKENS_PER_FEATURE:
            found.append(
                f"calibration is small: {self.tokens} tokens are {ratio:.1f} per feature of the fitted "
                f"matrices, {TOKENS_PER_FEATURE} are advised (a larger num_samples, or a longer text)"
            )
        if self.num_texts == 1:
            named = "" if self.source == TEXTS else f" ({self.source})"
            found.append(
                f"calibration is one narrow text{named}: the pruned model is fitted to text "
                "like it, other domains can be much worse; mix in samples of each domain that matters"
            )
        return found

    def facts(self, features: int) -> CalibrationFacts:
        """What results and plans say of the calibration, for matrices with ``features`` inputs."""
        return CalibrationFacts(
            source=self.source,
            tokens=self.tokens,
            samples=self.num_samples,
            max_length=self.max_length,
            tokens_per_feature=round(self.tokens_per_feature(features), 2),
            own_samples=self.own_samples,
            warnings=tuple(self.warnings(features)),
        )


def iter_batches(dataloader: Iterable[Any]) -> Iterator[Batch]:
    """Yield every batch of a data loader as a dict of int64 tensors ``[samples, tokens]``.

    Batches may be dicts, ``BatchEncoding``s, ``(input_ids, attention_mask)`` tuples or lists, or one tensor
    of ids. Lists of token columns, as ``DataLoader`` makes of a ``datasets.Dataset.map`` result, are stacked.

    Raises:
        CalibrationError: the loader is empty, or a batch has no token ids or has unequal shapes.
    """
    empty = True
    for index, raw in enumerate(dataloader):
        empty = False
        batch = _normalise(raw, index)
        if batch["input_ids"].numel():  # blank texts alone give a batch without tokens
            yield batch
    if empty:
        raise CalibrationError("The calibration dataloader is empty: it gave no batch.")


def as_calibration_set(dataloader: Iterable[Any], source: str = "dataloader") -> CalibrationSet:
    """Read a whole data loader into memory, so that it can be run through a model more than once."""
    if isinstance(dataloader, CalibrationSet):
        return dataloader
    batches = list(iter_batches(dataloader))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    if tokens == 0:
        raise CalibrationError("The calibration data has no unmasked token.")
    samples = sum(len(batch["input_ids"]) for batch in batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    return CalibrationSet(batches, tokens, source, samples, 0, length)


def _normalise(raw: Any, index: int) -> Batch:
    """One batch as a dict of tensors; ``index`` only serves error messages."""
    fields = _fields(raw, index)
    if "input_ids" not in fields:
        raise CalibrationError(f"Calibration batch {index} has no input_ids (found: {sorted(fields)}).")
    batch = {key: _matrix(fields[key], key, index) for key in FORWARD_KEYS if fields.get(key) is not None}
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    shapes = {key: tuple(value.shape) for key, value in batch.items() if not key.startswith("decoder")}
    if len(set(shapes.values())) > 1:
        raise CalibrationError(f"Calibration batch {index} has tensors of unequal shapes: {shapes}.")
    return batch


def _fields(raw: Any, index: int) -> Mapping[str, Any]:
    """Name the parts of a batch: mappings name their own; the order of a tuple is ids, then mask."""
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, Tensor):
        return {"input_ids": raw}
    if isinstance(raw, tuple | list) and raw:
        if isinstance(raw[0], Tensor):
            if len(raw) > 1 and not _is_mask(raw[1]):
                raise CalibrationError(
                    f"Calibration batch {index}: the second tensor of a tuple is the attention mask, and "
                    "this one isn't all zeros and ones; of (ids, labels) give the ids alone, or name the "
                    "parts in a dict."
                )
            return dict(zip(("input_ids", "attention_mask"), raw, strict=False))
        if all(isinstance(sample, Mapping) for sample in raw):
            return {key: [sample[key] for sample in raw] for key in raw[0] if key in FORWARD_KEYS}
        return {"input_ids": list(raw)}
    raise CalibrationError(
        f"Calibration batch {index} is a {type(raw).__name__}; "
        "expected a dict, a tuple or list of tensors, or a tensor."
    )


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(((value == 0) | (value == 1)).all())


def _matrix(value: Any, key: str, index: int) -> Tensor:
    """Token ids or a mask as an int64 matrix [samples, tokens]."""
    try:
        stacked = _stack(value)
        if key.endswith("ids") and (stacked.is_floating_point() or stacked.is_complex()):
            raise TypeError(stacked.dtype)
        matrix = stacked.long()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"Calibration batch {index}: {key} is not a rectangle of integers.") from error
    if matrix.dim() == 1:
        matrix = matrix[None]
    if matrix.dim() != 2:
        raise CalibrationError(
            f"Calibration batch {index}: {key} has shape {tuple(matrix.shape)}, expected [samples, tokens]."
        )
    return matrix


def _stack(value: Any) -> Tensor:
    """A tensor from nested lists. A list of vectors has one vector per token position (torch's collation)."""
    if isinstance(value, Tensor):
        return value
    if len(value) and all(isinstance(part, Tensor) and part.dim() == 1 for part in value):
        return torch.stack(list(value), dim=1)
    return torch.as_tensor(value)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without the special tokens that a tokenizer would add around it."""
    # verbose=False: a whole book is longer than the model's context, and that is fine here
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def window_starts(total: int, max_length: int, num_windows: int) -> list[int]:
    """Starts of windows spread evenly over ``total`` tokens: i·((total − max_length)//(num_windows − 1))."""
    if num_windows <= 1 or total <= max_length:
        return [0]
    step = (total - max_length) // (num_windows - 1)
    return [i * step for i in range(num_windows)]


def windows_from_text(
    tokenizer: Any, text: str, max_length: int, num_samples: int | None = None
) -> list[list[int]]:
    """Cut one text into windows of ``max_length`` token ids, spread evenly and never overlapping.

    Fewer than ``num_samples`` come back when the text is too short for that many; one shorter window when it
    is shorter than ``max_length``.
    """
    return windows_from_ids(encode(tokenizer, text), max_length, num_samples)


def windows_from_ids(ids: Sequence[int], max_length: int, num_samples: int | None = None) -> list[list[int]]:
    """The windows of :func:`windows_from_text`, from token ids."""
    if max_length < 1 or (num_samples is not None and num_samples < 1):
        raise CalibrationError("max_length and num_samples must be at least 1.")
    if not ids:
        raise CalibrationError("The calibration text is empty.")
    most = max(1, len(ids) // max_length)
    count = most if num_samples is None else min(num_samples, most)
    return [list(ids[start : start + max_length]) for start in window_starts(len(ids), max_length, count)]


def calibration_from_windows(
    windows: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    pad_token_id: int = 0,
    source: str = "token windows",
    num_texts: int = 0,
) -> CalibrationSet:
    """Batch windows of token ids, padded on the right to the longest of each batch (and masked there)."""
    if batch_size < 1:
        raise CalibrationError("batch_size must be at least 1.")
    kept = [list(window) for window in windows if len(window)]
    if not kept:
        raise CalibrationError("The calibration data is empty: no sample has a token.")
    batches = [pad(kept[i : i + batch_size], pad_token_id) for i in range(0, len(kept), batch_size)]
    tokens = sum(map(len, kept))
    return CalibrationSet(batches, tokens, source, len(kept), num_texts, max(map(len, kept)))


def pad(samples: Sequence[Sequence[int]], pad_token_id: int = 0) -> Batch:
    """Stack rows of ids of different lengths, padded behind the text, where padding shifts no position."""
    longest = max(map(len, samples))
    ids = torch.full((len(samples), longest), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = torch.tensor(sample)
        mask[row, : len(sample)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def calibration_from_texts(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int = 512,
    num_samples: int = 128,
    batch_size: int = 8,
    source: str = TEXTS,
    truncate: bool = False,
) -> CalibrationSet:
    """Samples from texts: each is cut into windows, about ``num_samples`` from all together.

    With ``truncate`` each text gives one sample, its first ``max_length`` tokens.
    """
    if tokenizer is None:
        raise TokenizerError("Calibration from text needs a tokenizer, and the model has none.")
    documents = [ids for ids in (encode(tokenizer, text) for text in texts if text.strip()) if ids]
    if not documents:
        raise CalibrationError(f"The calibration data ({source}) holds no text.")
    if truncate:
        windows = [ids[:max_length] for ids in documents[:num_samples]]
    else:
        windows = share_windows(documents, max_length, num_samples)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    num_texts = min(len(documents), len(windows))
    return calibration_from_windows(
        windows, batch_size=batch_size, pad_token_id=pad, source=source, num_texts=num_texts
    )


def share_windows(
    documents: Sequence[Sequence[int]], max_length: int, num_samples: int | None
) -> list[list[int]]:
    """Windows of several documents, each in proportion to how many whole windows it holds, at least one."""
    room = [max(1, len(ids) // max_length) for ids in documents]
    wanted = sum(room) if num_samples is None else num_samples
    if len(documents) >= wanted:
        return [list(ids[:max_length]) for ids in documents[:wanted]]
    share = min(1.0, wanted / sum(room))
    counts = [max(1, int(most * share)) for most in room]
    spare = sorted(range(len(room)), key=lambda i: (counts[i] - room[i] * share, i))
    for i in spare[: max(0, min(wanted, sum(room)) - sum(counts))]:
        counts[i] += 1
    cut = [windows_from_ids(ids, max_length, n) for ids, n in zip(documents, counts, strict=True)]
    return [window for windows in cut for window in windows][:wanted]


def load_calibration_file(
    path: Path | str, tokenizer: Any, *, max_length: int = 512, num_samples: int = 128, batch_size: int = 8
) -> CalibrationSet:
    """Read calibration samples from a file.

    ``.txt`` is cut into windows; ``.jsonl`` is one ``{"text": …}`` a sample.

    Raises:
        CalibrationError: the file is missing, of another kind, not UTF-8, empty, or a line is malformed.
    """
    path = Path(path)
    texts, truncate = read_texts(path)
    return calibration_from_texts(
        texts,
        tokenizer,
        max_length=max_length,
        num_samples=num_samples,
        batch_size=batch_size,
        source=path.name,
        truncate=truncate,
    )


def read_texts(path: Path | str) -> tuple[list[str], bool]:
    """The texts of a ``.txt`` or ``.jsonl`` file, and whether each text is one sample (``.jsonl``)."""
    path = Path(path)
    if path.suffix not in {".txt", ".jsonl"}:
        raise CalibrationError(f"Text file {path.name} must end in .txt or .jsonl.")
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CalibrationError(f"There is no file {path.name}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"Text file {path.name} can't be read as UTF-8 text.") from error
    if path.suffix == ".txt":
        return [content], False
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    return [_line_text(line, number, path.name) for number, line in lines], True


def _line_text(line: str, number: int, name: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f'{name}, line {number}: expected a JSON object {{"text": …}}.') from error
    if not isinstance(text, str):
        raise CalibrationError(f"{name}, line {number}: text must be a string.")
    return text
