"""``export``: a checkpoint in the format of another program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optipfair_engine.errors import CheckpointError
from optipfair_engine.headers import holds_safetensors
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.options.prune import PruneOptions
    from optipfair_engine.options.words import GgufType

#: The file that a prune with ``export="gguf"`` writes beside its checkpoint.
GGUF_FILE = "model.gguf"


def export_gguf(
    model: Path,
    output: Path,
    *,
    kind: GgufType = "f16",
    tokenizer_from: Path | None = None,
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Write a checkpoint as one GGUF file for llama.cpp.

    Args:
        model: a safetensors folder, pruned or not; layers may be of unequal sizes.
        output: the file; there must be none yet.
        kind: the type of the matrices: ``f16``, ``bf16`` or ``q8_0``.
        tokenizer_from: a GGUF file whose tokenizer is copied instead of converting the folder's.
        report: progress, one step a tensor.

    Returns:
        ``architecture`` (llama.cpp's name), ``type``, ``output_bytes``.

    Raises:
        EngineError: as ``write_gguf``; what is no safetensors folder is refused, too.
    """
    from optipfair_engine.checkpoints.gguf.write import write_gguf

    if not holds_safetensors(model):
        raise CheckpointError(
            f"{model.name} is no folder with safetensors: only those are written as GGUF", "model_not_found"
        )
    layout = write_gguf(model, output, kind=kind, tokenizer_from=tokenizer_from, report=report)
    return {"architecture": layout.architecture, "type": kind, "output_bytes": output.stat().st_size}


def check_export(source: Path, options: PruneOptions, *, calibrated: bool) -> None:
    """Refuse, before anything is pruned, an export that can't be had of the result.

    Raises:
        UnsupportedModelError: the family, or layers of unequal sizes of a family that allows none.
        TokenizerError: the tokenizer can't be converted.
    """
    if options.export == "none":
        return
    from transformers import AutoConfig

    from optipfair_engine.checkpoints.gguf import find_gguf
    from optipfair_engine.checkpoints.gguf.layout import (
        refuse_family,
        refuse_fewer_heads,
        refuse_unequal,
    )
    from optipfair_engine.checkpoints.gguf.tokenizer import read_vocabulary
    from optipfair_engine.checkpoints.loading import load_config
    from optipfair_engine.options.presets import resolve_preset

    file = None if holds_safetensors(source) else find_gguf(source)
    if file is None:
        config: Any = load_config(source)
    else:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    refuse_family(config)
    chosen = resolve_preset(options, calibrated=calibrated)
    some_layers = chosen.layer_indices is not None and chosen.pruning_type != "DEPTH"
    if chosen.unequal_widths or some_layers:
        refuse_unequal(config.model_type)
    if chosen.pruning_type == "ATTENTION":
        refuse_fewer_heads(config)
    read_vocabulary(source, config.vocab_size, file)


def export_beside(
    source: Path, output: Path, options: PruneOptions, *, report: Reporter = null_reporter
) -> dict[str, Any]:
    """Write what ``options.export`` asks for beside a pruned checkpoint, and name it in the manifest.

    The tokenizer is that of ``source`` where it is a GGUF file.

    Returns:
        Metrics: ``gguf_architecture`` and ``gguf_bytes``; nothing where no export is asked for.
    """
    if options.export == "none":
        return {}
    from optipfair_engine.checkpoints.gguf import find_gguf
    from optipfair_engine.checkpoints.manifest import Manifest, hash_file

    file = None if holds_safetensors(source) else find_gguf(source)
    made = export_gguf(output, output / GGUF_FILE, tokenizer_from=file, report=report)
    manifest = Manifest.read(output)
    files = {**manifest.files, GGUF_FILE: hash_file(output / GGUF_FILE)}
    replace(manifest, files=files).write(output)
    return {"gguf_architecture": made["architecture"], "gguf_bytes": made["output_bytes"]}
