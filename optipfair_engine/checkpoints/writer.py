"""Pruned models out: a folder that says where it comes from and that is known to reload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel

from optipfair_engine.checkpoints.loading import quiet_progress
from optipfair_engine.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    SourceInfo,
    hash_folder,
    package_versions,
)
from optipfair_engine.checkpoints.model_card import plan_summary, write_model_card
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.checkpoints.verify import ReloadRunner, check_tokens, verify_reload
from optipfair_engine.computing.asked import computed_in
from optipfair_engine.computing.number_type import chosen_dtype, name_of
from optipfair_engine.errors import InvalidOptionError, ReloadCheckError
from optipfair_engine.options.words import ComputeDtype

if TYPE_CHECKING:
    from optipfair_engine.options.words import VerifyLevel
    from optipfair_engine.plans import PruningPlan


def save_pruned(
    model: PreTrainedModel,
    output: Path | str,
    *,
    tokenizer: Any = None,
    plan: PruningPlan | None = None,
    source: SourceInfo | None = None,
    verify: VerifyLevel = "logits",
    max_shard_size: str = "5GB",
    runner: ReloadRunner | None = None,
    measured: Mapping[str, float] | None = None,
    execution: str | None = None,
    execution_reason: str | None = None,
    warnings: Sequence[str] = (),
) -> Manifest:
    """Write a pruned model with everything that belongs to it.

    Config (unequal layers as transformers' ``per_layer_config``), weights as safetensors, tokenizer and chat
    template, generation config, ``plan.json``, a model card (README.md) and ``optipfair_manifest.json`` with
    the SHA-256 of each file that is then in the folder. The same input gives the same bytes.

    Args:
        model: in memory.
        output: a new folder, one without a model, or the result of an earlier call, which is replaced.
        tokenizer: saved along, if given.
        plan: what was removed, if a plan says so.
        source: what was pruned.
        verify: ``none``, ``structure`` or ``logits`` (see ``verify_reload``).
        max_shard_size: as in ``save_pretrained``.
        runner: see ``verify_reload``.
        measured: perplexities (metric → value) for the manifest and the model card.
        execution: how the prune was carried out, for the manifest.
        execution_reason: why.
        warnings: what the model card must say to whoever uses the model.

    Raises:
        InvalidOptionError: the folder holds another model.
        ReloadCheckError: what was written doesn't reload to ``model``.
    """
    folder = Path(output)
    prepare_output(folder)
    with quiet_progress():
        _save_model(model, folder, max_shard_size)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, folder)
    make_readable(folder)
    return finish(
        folder,
        model,
        plan=plan,
        source=source,
        verify=verify,
        runner=runner,
        measured=measured or {},
        execution=execution,
        execution_reason=execution_reason,
        warnings=warnings,
    )


def _save_model(model: PreTrainedModel, folder: Path, max_shard_size: str) -> None:
    """``save_pretrained``, with generation settings as they are.

    transformers refuses to write settings that contradict each other (a temperature without sampling), which
    published models have: those are written as they came, since what a model says by default is not ours to
    change.
    """
    stated: Any = getattr(model, "generation_config", None)
    try:
        if stated is not None:
            stated.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig()
        try:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        finally:
            model.generation_config = stated
        (folder / "generation_config.json").write_text(stated.to_json_string(), encoding="utf-8")
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """``save_pretrained`` without sub-folders: several chat templates go into tokenizer_config.json."""
    one_template = not isinstance(getattr(tokenizer, "chat_template", None), dict)
    tokenizer.save_pretrained(folder, save_jinja_files=one_template)


def make_readable(folder: Path) -> None:
    """Give the weights the mode of the other files: safetensors writes them for their owner alone."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def prepare_output(folder: Path) -> None:
    """Make the folder; take away what an earlier call wrote there.

    Raises:
        InvalidOptionError: it holds a model that is not the result of an earlier call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST_NAME).is_file():
        try:
            earlier = Manifest.read(folder)
        except ReloadCheckError as error:
            raise InvalidOptionError(
                f"the output folder {folder.name} is not ours to replace: {error}"
            ) from error
        for name in (*earlier.files, MANIFEST_NAME):
            if Path(name).name == name and name.endswith(_MODEL_FILES):
                (folder / name).unlink(missing_ok=True)
    if any(folder.glob("model*.safetensors")) or (folder / "config.json").exists():
        raise InvalidOptionError(f"the output folder {folder.name} already holds a model; name a new one")


_MODEL_FILES = (".safetensors", ".safetensors.index.json", "config.json", MANIFEST_NAME)


def finish(
    folder: Path,
    model: PreTrainedModel,
    *,
    plan: PruningPlan | None,
    source: SourceInfo | None,
    verify: VerifyLevel,
    runner: ReloadRunner | None,
    measured: Mapping[str, float],
    execution: str | None = None,
    execution_reason: str | None = None,
    warnings: Sequence[str] = (),
) -> Manifest:
    """Plan, model card, manifest and the reload check, for weights that are already in ``folder``."""
    if plan is not None:
        plan.save(folder)
    summary = plan_summary(plan)
    write_model_card(folder, model.config.get_text_config().model_type, summary, source, measured, warnings)
    manifest = Manifest(
        source,
        summary,
        "none",
        hash_folder(folder),
        package_versions(),
        measured,
        execution,
        execution_reason,
        computed_in(),
    )
    manifest.write(folder)
    if verify == "none":
        return manifest
    tokens = check_tokens(model.config.get_text_config().vocab_size)
    # told to the other process, whose own trial might end otherwise
    computed: ComputeDtype = "float32" if name_of(chosen_dtype(model)) == "float32" else "checkpoint"
    verify_reload(
        folder,
        level=verify,
        reference_logits=model_logits(model, tokens, computed) if verify == "logits" else None,
        token_ids=tokens,
        runner=runner,
        device=str(model.device),
        attention=model.config._attn_implementation,
        compute_dtype=computed,
    )
    manifest = replace(manifest, reload_check=verify)
    manifest.write(folder)
    return manifest
