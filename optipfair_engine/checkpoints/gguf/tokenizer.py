"""The tokenizer of a GGUF file out: copied from another one, or converted from ``tokenizer.json``.

llama.cpp knows a byte-level BPE by the name of how it splits text before merging (``tokenizer.ggml.pre``). A
name stands here only if its splitting is that of ``tokenizer.json``, read off its structure; whatever is not
known is refused, since a wrong name gives other tokens without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optipfair_engine.checkpoints.gguf.read import find_gguf, parsed_once
from optipfair_engine.errors import TokenizerError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_PREFIX = "tokenizer."

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
#: (regular expression that splits, whether whole words skip the merges) → llama.cpp's name.
SPLITS = {
    (_CONTRACTIONS + _WORDS + r"|\p{N}" + _REST, False): "qwen2",
    (_CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST, True): "llama-bpe",
}
_KNOWN = "gpt-2, smollm, qwen2, llama-bpe"


class Vocabulary(Protocol):
    """A tokenizer, ready to be written."""

    def describe(self, writer: Any) -> None:
        """Write it as metadata."""
        ...


def read_vocabulary(folder: Path, size: int, copied_from: Path | None = None) -> Vocabulary:
    """The tokenizer of a checkpoint, for a token embedding of ``size`` rows.

    Args:
        folder: the checkpoint.
        size: rows of the embedding; tokens that it has more than the tokenizer are padded.
        copied_from: a GGUF file (or the folder of one) that has the tokenizer.

    Raises:
        TokenizerError: there is none, it has more tokens than the model, or it is of another kind than those
            that can be converted; the text names it.
    """
    if copied_from is not None:
        file = find_gguf(copied_from)
        if file is None:
            raise TokenizerError(f"{copied_from.name} is no GGUF file to take a tokenizer from")
        return _Copied.read(file, size)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder.name} has no tokenizer.json, which the tokenizer of a GGUF file is converted from; "
            "save the tokenizer there, or name a GGUF file that has it"
        )
    return _Converted.read(folder, size)


@dataclass(frozen=True)
class _Copied:
    """The tokenizer's fields of another file: key → (value, type, type of its entries)."""

    fields: Mapping[str, tuple[Any, Any, Any]]

    @classmethod
    def read(cls, file: Path, size: int) -> _Copied:
        import gguf

        with parsed_once():
            found = gguf.GGUFReader(str(file)).fields
        fields = {
            key: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
            for key, field in found.items()
            if key.startswith(_PREFIX)
        }
        if "tokenizer.ggml.tokens" not in fields:
            raise TokenizerError(f"{file.name} has no tokenizer to copy")
        count = len(fields["tokenizer.ggml.tokens"][0])
        if count != size:
            raise TokenizerError(f"the tokenizer of {file.name} has {count} tokens, and the model {size}")
        return cls(fields)

    def describe(self, writer: Any) -> None:
        for key, (value, kind, of) in self.fields.items():
            writer.add_key_value(key, value, kind, of)


@dataclass(frozen=True)
class _Converted:
    """A byte-level BPE from ``tokenizer.json``."""

    folder: Path
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    adds: Mapping[str, bool]

    @classmethod
    def read(cls, folder: Path, size: int) -> _Converted:
        try:
            said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            pre = name_of_splitting(said)
            tokens, kinds = _tokens(said, size)
            merges = [_merge(pair) for pair in said["model"]["merges"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, TokenizerError):
                raise
            raise TokenizerError(f"tokenizer.json can't be read: {type(error).__name__}") from error
        return cls(folder, pre, tokens, kinds, merges, _added_by_encoding(folder, len(tokens)))

    def describe(self, writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        special = _special(self.folder, len(self.tokens))
        for name, token in special.special_token_ids.items():
            add = getattr(writer, f"add_{name}_token_id", None)
            if add is not None:
                add(token)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if special.chat_template is not None:
            writer.add_chat_template(special.chat_template)


def name_of_splitting(said: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a ``tokenizer.json`` splits text before merging.

    Raises:
        TokenizerError: it is no byte-level BPE, or splits in a way that isn't known here.
    """
    model = said["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise _unknown(f"it is of type {kind}, not a byte-level BPE")
    steps = _steps(said.get("pre_tokenizer"), "pretokenizers")
    normalizers = [step["type"] for step in _steps(said.get("normalizer"), "normalizers")]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _unknown("it doesn't split by ByteLevel without a leading space")
    before, by_regex = steps[:-1], steps[-1].get("use_regex", True)
    name = None
    if by_regex and not before:
        name = "gpt-2"
    elif by_regex and [_digits(step) for step in before] == [True]:
        name = "smollm"
    elif not by_regex and len(before) == 1 and before[0]["type"] == "Split":
        pattern = before[0].get("pattern", {}).get("Regex")
        isolated = before[0].get("behavior") == "Isolated" and not before[0].get("invert")
        name = SPLITS.get((pattern, bool(model.get("ignore_merges")))) if isolated else None
    # llama.cpp composes no characters; nor does its own conversion of Qwen's tokenizers, which ask for NFC
    if name is None or normalizers not in ([], ["NFC"] if name == "qwen2" else []):
        raise _unknown("its pre-tokenizer or normalizer is none of those known here")
    if model.get("ignore_merges") and name != "llama-bpe":
        raise _unknown(f"it skips merges for whole words, which {name} doesn't")
    return name


def _steps(said: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if said is None:
        return []
    return list(said[key]) if said["type"] == "Sequence" else [said]


def _digits(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Digits" and bool(step.get("individual_digits"))


def _unknown(why: str) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer can't be written to a GGUF file: {why} (known: {_KNOWN}); name a GGUF file of "
        "the dense model, whose tokenizer is then copied"
    )


def _tokens(said: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """(tokens in order, their kinds), padded to ``size``."""
    by_id = {index: (token, _NORMAL) for token, index in said["model"]["vocab"].items()}
    for added in said.get("added_tokens") or ():
        by_id[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    if by_id and max(by_id) >= size:
        raise TokenizerError(
            f"the tokenizer has tokens up to id {max(by_id)}, and the model only {size} rows"
        )
    entries = [by_id.get(index, (f"[PAD{index}]", _UNUSED)) for index in range(size)]
    return [token for token, _ in entries], [kind for _, kind in entries]


def _merge(pair: str | Sequence[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _special(folder: Path, size: int) -> Any:
    """Ids of special tokens and the chat template, as the ``gguf`` package reads them off the folder."""
    import gguf

    return gguf.SpecialVocab(folder, load_merges=False, n_vocab=size)


def _added_by_encoding(folder: Path, size: int) -> dict[str, bool]:
    """Whether encoding puts the first token of a text before it, and the last behind it."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    known = _special(folder, size).special_token_ids
    return {
        "bos": len(ids) > 1 and ids[0] == known.get("bos"),
        "eos": len(ids) > 1 and ids[-1] == known.get("eos"),
    }
