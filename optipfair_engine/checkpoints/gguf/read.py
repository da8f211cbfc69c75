"""GGUF files in: dequantised into an ordinary model, with the tokenizer that the file carries."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from optipfair_engine.errors import CheckpointError, TokenizerError

_NOT_OURS = ("quantization_config", "_name_or_path", "_model_name_or_path")


def find_gguf(path: Path) -> Path | None:
    """The one ``.gguf`` of a folder without safetensors, or the file itself; None if there is none."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF header once and build its name map once, not once a module.

    Without it SmolLM2-135M takes five times as long to load; what is computed is the same. Its progress bar,
    which no option turns off, is silenced too.
    """
    import gguf
    import transformers.modeling_gguf_pytorch_utils as loader_module

    loader: Any = loader_module
    reader: Any = gguf.GGUFReader
    if not isinstance(reader, type):  # an outer call has seen to it
        yield
        return
    patches: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", functools.lru_cache(maxsize=1)(_quick_reader(reader))),
        (gguf, "get_tensor_name_map", functools.lru_cache(maxsize=1)(gguf.get_tensor_name_map)),
        (loader, "load_gguf_checkpoint", _remembering(loader.load_gguf_checkpoint)),
        (loader, "tqdm", functools.partial(loader.tqdm, disable=True)),
    ]
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _quick_reader(reader: Any) -> Any:
    """The reader, but slicing a plain array: a ``memmap`` builds a new one for each of 100,000 slices."""

    class QuickReader(reader):
        data: Any

        def _get(self, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = self.data.view(np.ndarray)
            return super()._get(*args, **kwargs)

    return QuickReader


def _remembering(parse: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``parse`` (a file's metadata), called once for each file; calls that read tensors go through."""
    known: dict[str, dict[str, Any]] = {}

    def parsed(path: str, return_tensors: bool = False, **options: Any) -> dict[str, Any]:
        if return_tensors:
            return parse(path, return_tensors=True, **options)
        if path not in known:
            known[path] = parse(path, **options)
        return copy.deepcopy(known[path])

    return parsed


def load_gguf_model(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A dense model from a GGUF file, its config free of what speaks of quantisation.

    Raises:
        CheckpointError: transformers can't read it (an unknown architecture, for instance).
    """
    with parsed_once():
        return _read_model(file, dtype)


def _read_model(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(str(file.parent), **place)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config)
        tensors = load_gguf_checkpoint(
            str(file), return_tensors=True, model_to_load=shell, torch_dtype=dtype
        )["tensors"]
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{file.name} can't be read as a GGUF model: {type(error).__name__}") from error
    return _model_from(type(shell), config, tensors)


def _model_from(
    model_class: type[PreTrainedModel], config: Any, tensors: dict[str, torch.Tensor]
) -> PreTrainedModel:
    """The model of ``config`` that holds exactly these tensors (tied ones need not be given)."""
    from transformers.initialization import no_init_weights

    clean = {k: v for k, v in config.to_dict().items() if k not in _NOT_OURS}
    with no_init_weights():
        model = model_class(type(config)(**clean))
    # assigned, not cast: casting the model would round its rotary frequencies too, which no checkpoint stores
    result = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(result.missing_keys) - tied)
    if missing:
        raise CheckpointError(f"the GGUF file lacks {len(missing)} tensors of the model: {missing[0]} …")
    model.eval()
    return model


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file.

    Raises:
        TokenizerError: it carries none that transformers can build.
    """
    try:
        with parsed_once():
            return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{file.name} has no usable tokenizer: {type(error).__name__}") from error
