"""Does a saved checkpoint reload to what was saved?"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optipfair_engine.checkpoints.loading import load_config, load_pruned, model_class_of, sized_class
from optipfair_engine.checkpoints.manifest import MANIFEST_NAME, Manifest, check_hashes
from optipfair_engine.checkpoints.reload import ReloadItem, read_answer, write_request
from optipfair_engine.errors import EngineError, InvalidOptionError, ReloadCheckError
from optipfair_engine.headers import HeaderError, read_headers
from optipfair_engine.options.words import ComputeDtype, VerifyLevel

#: ``runner(folder, token_ids, device, attention, compute_dtype) -> logits``, in a process that never held
#: the model
ReloadRunner: TypeAlias = Callable[[Path, Sequence[Sequence[int]], str, str | None, ComputeDtype], Tensor]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHECK_TOKENS = 24
_TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class ReloadCheck:
    """A passed check: its level, and by how much the logits differ (0.0: bit-equal; None: not compared)."""

    level: VerifyLevel
    max_difference: float | None = None


def check_tokens(vocab_size: int) -> list[list[int]]:
    """A fixed sequence of token ids spread over the vocabulary."""
    return [[(1 + 7919 * i) % vocab_size for i in range(_CHECK_TOKENS)]]


def verify_reload(
    folder: Path,
    *,
    level: VerifyLevel,
    reference_logits: Tensor | None = None,
    token_ids: Sequence[Sequence[int]] | None = None,
    runner: ReloadRunner | None = None,
    device: str = "cpu",
    attention: str | None = None,
    compute_dtype: ComputeDtype = "checkpoint",
) -> ReloadCheck:
    """Check a saved checkpoint.

    Args:
        folder: what ``save_pruned`` wrote.
        level: ``structure`` compares every tensor's name, shape and dtype with the config built on the meta
            device, and the hashes with the manifest if there is one; ``logits`` also has a process that never
            held the model compute logits from the folder, which must be equal bit by bit on the CPU
            (elsewhere: within 1 % of the largest).
        reference_logits: of the model that was saved, for ``logits``.
        token_ids: what they belong to.
        runner: how to compute logits in another process; the default starts a new Python.
        device: where the runner computes.
        attention: the attention implementation that the reference was computed with.
        compute_dtype: what it was computed in: ``float32`` or ``checkpoint``.

    Raises:
        ReloadCheckError: it doesn't reload to what was saved; the text says where it differs.
        InvalidOptionError: unknown level, or ``logits`` without a reference.
    """
    if level not in ("none", "structure", "logits"):
        raise InvalidOptionError(f"verify must be none, structure or logits, not {level!r}")
    if level == "none":
        return ReloadCheck("none")
    if level == "logits" and (reference_logits is None or token_ids is None):
        raise InvalidOptionError("verify=logits needs reference logits and their token ids")
    check_structure(folder)
    if reference_logits is None or token_ids is None or level == "structure":
        return ReloadCheck("structure")
    logits = (runner or run_fresh)(folder, token_ids, device, attention, compute_dtype)
    return ReloadCheck("logits", _compare(logits, reference_logits, exact=torch.device(device).type == "cpu"))


def check_structure(folder: Path) -> None:
    """Tensor names, shapes and dtypes against the config on the meta device; hashes against the manifest.

    Raises:
        ReloadCheckError: names the first difference.
    """
    try:
        stored = {name: info for name, (_, info) in read_headers(folder).items()}
        config = load_config(folder)
        with torch.device("meta"):
            model_class = model_class_of(config)
            model = sized_class(model_class, config)(config)
    except (HeaderError, EngineError) as error:
        raise ReloadCheckError(f"the saved checkpoint can't be read: {error}") from error
    _check_names(folder, model, {name: info.shape for name, info in stored.items()})
    _check_dtypes({name: info.dtype for name, info in stored.items()}, config.dtype)
    if (folder / MANIFEST_NAME).is_file():
        check_hashes(folder, Manifest.read(folder))


def _check_names(folder: Path, model: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> None:
    """The stored tensors are the model's: under its names, or as transformers writes the family."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    complaints = [_difference(stored, names) for names in (state, _as_written(model, state))]
    if all(complaints):
        # an older naming may have been kept: then only loading it can tell
        try:
            load_pruned(folder)
        except EngineError:
            raise ReloadCheckError(str(complaints[0])) from None


def _as_written(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as ``save_pretrained`` names and splits them (experts one by one, for instance)."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, state))


def _difference(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference of names and shapes, in words, or None."""
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or extra:
        return f"tensors missing: {missing[:3]}, not expected: {extra[:3]}"
    for name in sorted(stored):
        if stored[name] != tuple(expected[name].shape):
            return f"{name} has shape {list(stored[name])}, not {list(expected[name].shape)}"
    return None


def _check_dtypes(stored: dict[str, str], dtype: object) -> None:
    found = {_DTYPES[name] for name in stored.values() if name in _DTYPES}
    if dtype is not None and found and dtype not in found:
        raise ReloadCheckError(f"no tensor has the config's dtype {dtype}")


def run_fresh(
    folder: Path,
    token_ids: Sequence[Sequence[int]],
    device: str = "cpu",
    attention: str | None = None,
    compute_dtype: ComputeDtype = "checkpoint",
) -> Tensor:
    """Logits from a new Python process."""
    return reload_logits([ReloadItem(folder, token_ids, attention, compute_dtype)], device)[0]


def reload_logits(items: Sequence[ReloadItem], device: str = "cpu") -> list[Tensor]:
    """Logits of several folders from one new Python process, which is given only them and the token ids.

    Raises:
        ReloadCheckError: it failed; the text is the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="optipfair-reload-") as scratch:
        asked, answer = Path(scratch, "request.json"), Path(scratch, "answer.safetensors")
        write_request(asked, items, device)
        command = [sys.executable, "-m", "optipfair_engine.checkpoints.reload", str(asked), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ReloadCheckError(f"the saved checkpoint did not reload in a new process: {last}")
        return read_answer(answer)


def _compare(logits: Tensor, reference: Tensor, *, exact: bool) -> float:
    if logits.shape != reference.shape or logits.dtype != reference.dtype:
        raise ReloadCheckError(
            f"reloaded logits are {logits.dtype}{list(logits.shape)}, "
            f"saved were {reference.dtype}{list(reference.shape)}"
        )
    if torch.equal(logits, reference.cpu()):
        return 0.0
    difference = (logits.double() - reference.cpu().double()).abs().max().item()
    # another kernel may be chosen in another process on an accelerator; on the CPU nothing may differ
    limit = 0.0 if exact else 0.01 * reference.double().abs().max().item()
    if not difference <= limit:
        raise ReloadCheckError(f"reloaded logits differ from the saved model's by up to {difference:.6g}")
    return difference
