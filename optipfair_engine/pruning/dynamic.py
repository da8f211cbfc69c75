"""Dynamic pruning: each prompt chooses the neurons that its continuation is computed with.

GRIFFIN (arXiv 2404.01365): a prompt runs through the whole model; each MLP sums up how strongly its neurons
were active, token by token in relation to the others, and the tokens that follow use the strongest alone.
Nothing is trained or saved, and the next prompt chooses anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from optipfair_engine.architectures import locate
from optipfair_engine.calibration.runner import first_tensor
from optipfair_engine.errors import InvalidOptionError, UnsupportedModelError
from optipfair_engine.options.evaluation import LEAST_PROMPT_TOKENS, dynamic_of
from optipfair_engine.pruning.sizes import exact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from optipfair_engine.architectures import ModelView
    from optipfair_engine.architectures.mlp import MlpView

#: Models inside a block: a second one would narrow what is narrow.
_inside: WeakSet[nn.Module] = WeakSet()

_Attributes = list[tuple[nn.Module, dict[str, Any]]]


@dataclass
class DynamicPruning:
    """What happened inside a ``dynamic_pruning`` block so far.

    Attributes:
        keep_percentage: how many of each layer's neurons the tokens behind a prompt use.
        active_parameters: parameters that each of these tokens is computed with.
        prompts: prompts that had neurons chosen for them.
        selections: how often neurons were chosen: once for all prompts that were given together.
        short_prompts: prompts given where one had fewer than 16 tokens: behind these, all neurons are used.
    """

    keep_percentage: float
    active_parameters: int
    prompts: int = 0
    selections: int = 0
    short_prompts: int = 0
    _continuing: bool = False

    @property
    def selection(self) -> Literal["prompt", "batch"]:
        """Whether each prompt had neurons of its own, or somewhere a batch of prompts shared them."""
        return "prompt" if self.selections == self.prompts else "batch"

    @contextmanager
    def continuation(self) -> Iterator[None]:
        """A block in which what follows a prompt may be read at once, as if each token was generated."""
        self._continuing = True
        try:
            yield
        finally:
            self._continuing = False

    @property
    def continuing(self) -> bool:
        """Whether several tokens at once are a continuation."""
        return self._continuing


@contextmanager
def dynamic_pruning(model: PreTrainedModel, keep_percentage: float = 50) -> Iterator[DynamicPruning]:
    """A block in which ``model.generate`` computes each new token with a part of the neurons.

    A call of the model with an empty cache is a prompt, read with all neurons, that chooses those of the
    tokens behind it, one a call. Prompts given together share one choice. Behind a prompt of fewer than 16
    tokens all neurons are used, and a warning says so. The chosen neurons are copied, so the block takes up
    to ``keep_percentage`` of the MLPs' memory in addition.

    Args:
        model: a causal language model; when the block ends it has the tensors that it had before.
        keep_percentage: per cent of each layer's neurons that stay, above 0 and below 100; at least one does.

    Yields:
        What happened so far.

    Raises:
        InvalidOptionError: a percentage out of range, a block within a block, or, inside it, a call without
            a cache.
        UnsupportedModelError: the model predicts no next token, or its neurons can't be removed (a mixture
            of experts).
    """
    dynamic_of({"keep_percentage": keep_percentage})  # refuses what is out of range
    view = locate(model)
    if view.config.is_encoder_decoder or not (view.is_causal and model.can_generate()):
        raise UnsupportedModelError(
            f"{view.model_type}: {type(model).__name__} is no causal language model, so nothing follows a "
            "prompt that could be pruned"
        )
    layers = [_Layer(view, index, keep_percentage) for index in range(view.num_layers)]
    if view.model in _inside:
        raise InvalidOptionError("the model is in a dynamic_pruning block already: end that one first")
    active = sum(p.numel() for p in model.parameters()) - sum(layer.spared for layer in layers)
    state = DynamicPruning(keep_percentage, active)
    with ExitStack() as stack:
        _inside.add(view.model)
        stack.callback(_inside.discard, view.model)
        watch = _Watch(view, state, layers)
        # not at the body: OPT's is passed over
        stack.callback(view.model.register_forward_pre_hook(watch, with_kwargs=True).remove)
        for layer in layers:
            stack.callback(layer.widen)
            stack.callback(layer.attend().remove)
        yield state


class _Watch:
    """Tells prompts from the tokens that follow them, at each call of the model."""

    def __init__(self, view: ModelView, state: DynamicPruning, layers: list[_Layer]) -> None:
        self._caches = bool(getattr(view.config, "use_cache", True))
        self._state, self._layers = state, layers
        self._chosen = False

    def __call__(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the call."""
        said = kwargs.get("use_cache")
        if not (self._caches if said is None else said):
            raise InvalidOptionError(
                "dynamic pruning needs the cache of keys and values, or nothing follows a prompt: use_cache "
                "must be true, in the call or in the model's config"
            )
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            return  # the model says itself what it lacks
        past = kwargs.get("past_key_values")
        if past is None or int(past.get_seq_length()) == 0:
            self._prompt(given, kwargs.get("attention_mask"))
        else:
            narrow = self._chosen and (given.shape[1] == 1 or self._state.continuing)
            for layer in self._layers:
                layer.continued(narrow=narrow)

    def _prompt(self, given: Tensor, mask: Tensor | None) -> None:
        samples, tokens = given.shape[:2]
        used = torch.ones(samples, tokens, dtype=torch.bool, device=given.device)
        if isinstance(mask, Tensor) and mask.shape == used.shape:
            used = mask.bool().to(given.device)
        self._chosen = int(used.sum(dim=1).min()) >= LEAST_PROMPT_TOKENS
        if self._chosen:
            self._state.prompts += samples
            self._state.selections += 1
        else:
            self._state.short_prompts += samples
            warnings.warn(
                f"the prompt has fewer than {LEAST_PROMPT_TOKENS} tokens, too few to choose neurons by: what "
                "follows is computed with all of them",
                stacklevel=2,
            )
        for layer in self._layers:
            layer.prompted(used if self._chosen else None)


class _Layer:
    """One layer's MLP: wide while a prompt is read, narrow behind it."""

    def __init__(self, view: ModelView, index: int, keep_percentage: float) -> None:
        self._mlp: MlpView = view.mlp(index)
        size = self._mlp.intermediate_size
        self._count = max(1, size - int((100 - exact(keep_percentage)) * size / 100))
        self._used: Tensor | None = None
        self._kept: Tensor | None = None
        self._wide: _Attributes = []
        self._narrow: _Attributes = []

    @property
    def spared(self) -> int:
        """Parameters that aren't used behind a prompt."""
        down, size = self._mlp.down_module, self._mlp.intermediate_size
        rows = {module for module in (self._mlp.gate_module, self._mlp.up_module) if module is not None}
        each = sum(p.numel() for module in rows for p in module.parameters()) + down.weight.numel()
        return each // size * (size - self._count)

    def attend(self) -> torch.utils.hooks.RemovableHandle:
        """Look at the neurons of prompts, until the handle is removed."""
        return self._mlp.down_module.register_forward_pre_hook(self._look, with_kwargs=True)

    def prompted(self, used: Tensor | None) -> None:
        """A prompt comes: all neurons are there; ``used``: its unmasked tokens, ``None`` to choose none."""
        self.widen()
        self._used, self._kept, self._wide, self._narrow = used, None, [], []

    def continued(self, *, narrow: bool) -> None:
        """A token that follows comes."""
        self._used = None
        if not narrow:
            self.widen()
        elif self._narrow:
            _put(self._narrow)
        elif self._kept is not None:
            self._make_narrow(self._kept)

    def widen(self) -> None:
        """All neurons are there again."""
        _put(self._wide)

    def _look(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Choose by a prompt's activations ``[samples, tokens, I]``: the paper's statistic s.

        Of several samples the statistics are added, each divided by the root of its sample's length.
        """
        if self._used is None:
            return
        active = first_tensor(args, kwargs).detach().float()
        active = active.reshape(*self._used.shape, -1)
        # a token that activates nothing has no direction: it counts as zero, not as NaN
        relative = active / torch.linalg.vector_norm(active, dim=-1, keepdim=True).clamp(min=1e-12)
        relative = relative.masked_fill(~self._used[..., None], 0)
        each = torch.linalg.vector_norm(relative, dim=1) / self._used.sum(dim=1, keepdim=True).sqrt()
        self._kept = torch.argsort(each.sum(dim=0), descending=True, stable=True)[: self._count].cpu()

    def _make_narrow(self, kept: Tensor) -> None:
        """Keep the chosen neurons, and remember what changed by it."""
        found = (self._mlp.gate_module, self._mlp.up_module, self._mlp.down_module, self._mlp.module)
        modules = list({id(module): module for module in found if module is not None}.values())
        before = [_attributes(module) for module in modules]
        self._mlp.keep(kept)
        for module, old in zip(modules, before, strict=True):
            new = _attributes(module)
            changed = [name for name, value in new.items() if value is not old[name]]
            self._wide.append((module, {name: old[name] for name in changed}))
            self._narrow.append((module, {name: new[name] for name in changed}))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds itself: its parameters, apart under their own key, and plain attributes."""
    return {**vars(module), "_parameters": dict(module._parameters)}


def _put(states: _Attributes) -> None:
    for module, state in states:
        # a module's own dictionary of parameters stays the one that others may hold
        module._parameters.update(state.get("_parameters", {}))
        vars(module).update({name: value for name, value in state.items() if name != "_parameters"})
