"""Models in: safetensors or GGUF only, no code from the folder, nothing missing, nothing random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from optipfair_engine.architectures import ModelView, config_edits, locate
from optipfair_engine.architectures.base import UNSAID_SIZE
from optipfair_engine.checkpoints.gguf import find_gguf, load_gguf_model
from optipfair_engine.computing.finite import is_finite
from optipfair_engine.errors import (
    CheckpointError,
    InvalidOptionError,
    NonFiniteWeightsError,
    UnsupportedModelError,
)
from optipfair_engine.headers import HeaderError, inspect_model_folder

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_HEAD_SIZES = ("num_attention_heads", "num_key_value_heads")


def load_model(
    path: Path | str, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A model from a safetensors folder, a folder with one ``.gguf``, or a ``.gguf`` file, in eval mode.

    ``dtype="auto"`` is the checkpoint's own, for a GGUF file bfloat16. A multimodal model comes whole; the
    pruning code finds its text tower. Weights are checked for NaN and infinity.

    Raises:
        CheckpointError: missing, pickled, truncated, of unknown code, or without some of its tensors.
        NonFiniteWeightsError: names the tensor.
        UnsupportedModelError: the weights are quantised.
        InvalidOptionError: an unknown dtype, or a device that this machine doesn't have.
    """
    folder, chosen = Path(path), _dtype(dtype)
    _check_device(device)
    _check_headers(folder)
    gguf = None if _has_safetensors(folder) else find_gguf(folder)
    if gguf is not None:
        model = load_gguf_model(gguf, chosen or torch.bfloat16)
    else:
        model, _ = _load_folder(folder, chosen)
    check_finite(model)
    return _to(model, device)


def load_pruned(
    path: Path | str, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A pruned model, its layers of unequal sizes too (``per_layer_config`` in config.json), in eval mode.

    Needs nothing but what ``save_pretrained`` wrote, and succeeds only if no tensor is missing, unexpected or
    of another shape.

    Raises:
        CheckpointError: as ``load_model``; also for unexpected tensors.
    """
    folder, chosen = Path(path), _dtype(dtype)
    _check_device(device)
    _check_headers(folder)
    if not _has_safetensors(folder):
        raise CheckpointError("a pruned model is a folder of safetensors", "model_not_found")
    model, unexpected = _load_folder(folder, chosen)
    if unexpected:
        raise CheckpointError(f"the checkpoint holds {len(unexpected)} unknown tensors: {unexpected[0]} …")
    return _to(model, device)


def check_finite(model: torch.nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        NonFiniteWeightsError: names the first such tensor.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        if not is_finite(parameter.detach()):
            raise NonFiniteWeightsError(f"the weights are not finite: {name} holds NaN or infinity")


def _to(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    torch.nn.Module.to(model, device)
    return model


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype asked for; None for "auto"."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise InvalidOptionError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    return None if dtype == "auto" else getattr(torch, dtype)


def _check_device(device: str | torch.device) -> None:
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidOptionError("device 'cuda' was asked for, but torch sees no CUDA device here")


def _check_headers(folder: Path) -> None:
    try:
        inspect_model_folder(folder)
    except HeaderError as error:
        raise CheckpointError(error.message, error.code) from None


def _has_safetensors(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).is_file() for name in names)


def _load_folder(folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, list[str]]:
    """(model, names of tensors in the checkpoint that the model doesn't have)."""
    config = load_config(folder)
    model_class = model_class_of(config)
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype or "auto",
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    with quiet_progress():
        try:
            loaded: Any = sized_class(model_class, config).from_pretrained(str(folder), **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).replace(str(folder), folder.name).splitlines()[0:1]
            raise CheckpointError(f"{folder.name} can't be loaded: {' '.join(reason)}") from error
    model, info = loaded
    _check_complete(info)
    model.__class__ = model_class
    return model, sorted(map(str, info["unexpected_keys"]))


def _check_complete(info: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = sorted(map(str, info.get(kind) or ()))
        if found:
            word = kind.partition("_")[0]
            raise CheckpointError(f"{len(found)} {word} tensors (they would have been random): {found[0]}")


def load_config(folder: Path) -> PreTrainedConfig:
    """The folder's config; never code from the folder.

    Raises:
        CheckpointError: ``model_config_invalid``.
        UnsupportedModelError: the weights are quantised.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # strict configs raise many kinds
        raise CheckpointError(
            f"config.json is not accepted: {type(error).__name__}", "model_config_invalid"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{config.model_type}: {folder.name} holds quantised weights (see quantization_config); "
            "name the unquantised model"
        )
    return config


def model_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that ``config.architectures`` names, if it is one of transformers'; else the causal LM."""
    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    try:
        mapped: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise CheckpointError(
            f"no model class is known for family {config.model_type!r}", "model_config_invalid"
        ) from None
    found_class: type[PreTrainedModel] = mapped[0] if isinstance(mapped, tuple) else mapped
    return found_class


def sized_class(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """``model_class``, made to build its layers with the sizes of ``config``'s ``per_layer_config``.

    transformers 5.23 stores unequal layers but few families build them: construction reads one number for
    all, and raises. So the model is built from the same config without its ``per_layer_config``, its layers
    are cut to size (on the meta device, before weights are read), and only then is the statement put back.
    """
    if not config.get_text_config().is_heterogeneous:
        return model_class

    def build(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        text = config.get_text_config()
        overrides = config_edits.overrides(text)
        text.per_layer_config = None
        model_class.__init__(self, config, *args, **kwargs)
        view = locate(self)
        for index, sizes in overrides.items():
            _cut(view, index, sizes)
        view.write_sizes_to_config()

    # the name stays, so that whatever transformers derives from it is that of the class itself
    return type(
        model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__}
    )


def _cut(view: ModelView, index: int, sizes: Mapping[str, Any]) -> None:
    """Give layer ``index`` the sizes that the config states for it."""
    spec = view.architecture.mlp
    wide = (spec.size_attribute if spec else None) or UNSAID_SIZE
    unknown = set(sizes) - {wide, *_HEAD_SIZES}
    if unknown:
        raise CheckpointError(
            f"per_layer_config of layer {index} states {sorted(unknown)}, which is not known"
        )
    if wide in sizes:
        view.mlp(index).keep(torch.arange(int(sizes[wide]), device="cpu"))
    if any(name in sizes for name in _HEAD_SIZES):
        _cut_heads(view, index, sizes)


def _cut_heads(view: ModelView, index: int, sizes: Mapping[str, Any]) -> None:
    attention = view.attention(index)
    heads = int(sizes.get("num_attention_heads", attention.num_heads))
    kv = int(sizes.get("num_key_value_heads", attention.num_key_value_heads))
    group = attention.num_heads // attention.num_key_value_heads
    # explicitly on the CPU: models are built under torch's meta device
    groups = torch.arange(kv, device="cpu")
    query = groups[:, None] * group + torch.arange(heads // kv, device="cpu")
    attention.keep_heads(query.flatten(), groups)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Without transformers' own progress bars; the setting is put back."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
