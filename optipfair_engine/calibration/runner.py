"""Run calibration batches through a whole model and feed accumulators by hooks.

Only unmasked tokens count, so results depend neither on padding nor on how the samples were batched. The
model's train/eval mode, module by module, and its hooks are restored whatever happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from optipfair_engine.calibration.experts import routed
from optipfair_engine.calibration.share import ALONE, Share
from optipfair_engine.calibration.text import Batch, iter_batches
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import (
    CalibrationError,
    InvalidOptionError,
    TokenizerError,
    UnsupportedModelError,
)
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from optipfair_engine.architectures import ModelView

#: ``down_proj`` and ``o_proj``: that module's input; ``layer``: a decoder layer's input and output;
#: ``experts``: the experts that tokens were sent to, with gates and norms of what they add.
Site = Literal["down_proj", "o_proj", "layer", "experts"]

#: What families call a table of positions, which ends where rotary or relative positions don't.
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")

#: Every this many-th sample, counted across batches, is held out to choose a ridge and to judge plans.
HOLDOUT_EVERY = 8


class Accumulator(Protocol):
    """What the runner feeds: ``update(x)``, or what a site means otherwise.

    At ``layer`` that is ``update(before, after)``, at ``experts`` ``update(chosen, gates, norms)``.
    """

    tokens: int

    @property
    def update(self) -> Callable[..., None]:
        """Add tokens ``[tokens, features]``."""


A = TypeVar("A", bound=Accumulator)


@dataclass
class TokenSelection:
    """Which rows of the flattened ``[samples·tokens]`` activations of the current batch are used for what."""

    fit: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    held: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    rows: int = 0

    def load(self, mask: Tensor, first_sample: int, every: int | None) -> None:
        """Select from a mask ``[samples, tokens]`` whose first sample has the number ``first_sample``."""
        used = mask.bool()
        held = torch.zeros_like(used)
        if every is not None:
            samples = torch.arange(first_sample, first_sample + len(mask), device=mask.device)
            held = used & ((samples % every) == every - 1)[:, None]
        self.fit = (used & ~held).flatten().nonzero().squeeze(1)
        self.held = held.flatten().nonzero().squeeze(1)
        self.rows = mask.numel()

    def take(self, x: Tensor, rows: Tensor) -> Tensor:
        """The selected rows of activations ``[samples, tokens, features]`` (or already flattened)."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if len(flat) != self.rows:
            raise CalibrationError(
                f"A layer saw {len(flat)} tokens of a batch of {self.rows}: it can't be calibrated by token."
            )
        rows = rows.to(flat.device)
        return flat if len(rows) == len(flat) else flat[rows]


@dataclass(frozen=True)
class Captured(Generic[A]):
    """Accumulators by layer: fed by the fitting samples, and by the held-out ones (if any)."""

    fit: dict[int, A]
    held: dict[int, A]


def capture(
    view: ModelView,
    batches: Iterable[Any],
    layers: Sequence[int],
    accumulator_factory: Callable[[], A],
    site: Site = "down_proj",
    *,
    report: Reporter = null_reporter,
) -> dict[int, A]:
    """Feed one accumulator per layer with the unmasked tokens at ``site``, in one forward pass."""
    wanted = {site: (layers, accumulator_factory)}
    return capture_sites(view, batches, wanted, holdout_every=None, report=report)[site].fit


def capture_sites(
    view: ModelView,
    batches: Iterable[Any],
    wanted: Mapping[Site, tuple[Sequence[int], Callable[[], A]]],
    *,
    holdout_every: int | None = HOLDOUT_EVERY,
    share: Share = ALONE,
    report: Reporter = null_reporter,
) -> dict[Site, Captured[A]]:
    """Feed accumulators at several sites in one forward pass, keeping every n-th sample apart.

    Args:
        view: the located model.
        batches: anything that ``iter_batches`` reads.
        wanted: for each site, its layers and what makes an accumulator.
        holdout_every: every n-th sample (counted across batches) feeds ``held`` only; ``None``: nothing.
        share: the batches that this process runs, if others run the rest.
        report: progress, stage "calibrate", one step a batch.
    """
    selection = TokenSelection()
    captured: dict[Site, Captured[A]] = {}
    with ExitStack() as stack:
        for site, (layers, factory) in wanted.items():
            kept = Captured({i: factory() for i in layers}, {i: factory() for i in layers})
            captured[site] = kept
            for i in layers:
                stack.callback(register_site(view, i, site, kept.fit[i], kept.held[i], selection).remove)
        for _ in forward_batches(view.model, batches, selection, holdout_every, share=share, report=report):
            pass
    return captured


def site_module(view: ModelView, layer: int, site: Site) -> nn.Module:
    """The module whose activations a site means."""
    if site == "layer":
        return view.layers[layer]
    if site == "experts":
        return view.experts(layer).module
    return view.mlp(layer).down_module if site == "down_proj" else view.attention(layer).o_module


def register_site(
    view: ModelView, layer: int, site: Site, fit: A, held: A, selection: TokenSelection
) -> torch.utils.hooks.RemovableHandle:
    """Feed two accumulators with what passes a site, as ``selection`` says; until the handle is removed."""
    return _register(site_module(view, layer, site), site, _hook(site, fit, held, selection))


def _hook(site: Site, fit: A, held: A, selection: TokenSelection) -> Callable[..., None]:
    """A forward hook that feeds both accumulators."""

    def feed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        values = routed(module, args, kwargs) if site == "experts" else [first_tensor(args, kwargs)]
        if site == "layer":
            values.append(output[0] if isinstance(output, tuple) else output)
        fit.update(*(selection.take(value, selection.fit) for value in values))
        if len(selection.held):
            held.update(*(selection.take(value, selection.held) for value in values))

    return feed


def _register(module: nn.Module, site: Site, hook: Callable[..., None]) -> torch.utils.hooks.RemovableHandle:
    if site == "layer":
        return module.register_forward_hook(hook, with_kwargs=True)
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """A module's main input, given by position or as ``hidden_states``."""
    value = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(value, Tensor):
        raise UnsupportedModelError("A layer was called without hidden states as its first argument.")
    return value


def forward_batches(
    model: nn.Module,
    batches: Iterable[Any],
    selection: TokenSelection,
    holdout_every: int | None = None,
    *,
    share: Share = ALONE,
    report: Reporter = null_reporter,
) -> Iterator[Batch]:
    """Run the model's body (no language-model head) over batches, in eval mode and without gradients.

    Yields each batch after its forward pass; ``selection`` is loaded before it. Of several processes each
    runs its share, and counts the samples of all.
    """
    body = getattr(model, "base_model", model)
    extra = {"use_cache": False} if _accepts(body, "use_cache") else {}
    total = len(batches) if isinstance(batches, Sized) else 0
    seen = 0
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad():
        for number, given in enumerate(iter_batches(batches), 1):
            if not share.takes(number - 1):
                seen += len(given["input_ids"])
                continue
            check_tokens(model, given["input_ids"])
            # looked at before they move: reading a GPU's tensors would wait for it
            inputs = {key: value.to(device) for key, value in with_positions(body, given).items()}
            batch = {key: inputs[key] for key in given}
            selection.load(batch["attention_mask"], seen, holdout_every)
            with fast_products(model):  # not around the yield: torch keeps such modes in a stack of their own
                body(**inputs, **extra)
            seen += len(batch["input_ids"])
            report("calibrate", number, max(total, number), f"batch {number}")
            yield batch


def check_tokens(model: Any, input_ids: Tensor, new_tokens: int = 0) -> None:
    """Refuse token ids ``[samples, tokens]`` that the model has no embedding for, or more than it can count.

    Raises:
        InvalidOptionError: more tokens (with ``new_tokens`` to be generated) than the model's position table.
        TokenizerError: an id beyond its vocabulary.
    """
    length, limit = input_ids.shape[-1] + new_tokens, position_limit(model)
    # the last token that is generated is read by nobody
    if limit is not None and length - bool(new_tokens) > limit:
        of_them = f" ({new_tokens} of them to generate)" if new_tokens else ""
        option = "max_new_tokens" if new_tokens else "max_length"
        raise InvalidOptionError(
            f"{length} tokens{of_them} are more than the model's {limit} positions: give a smaller {option}"
        )
    vocabulary, highest = len(model.get_input_embeddings().weight), int(input_ids.max())
    if highest >= vocabulary:
        raise TokenizerError(
            f"token id {highest} is beyond the model's vocabulary of {vocabulary}: "
            "the text was tokenised for another model"
        )


def position_limit(model: Any) -> int | None:
    """How many tokens the text model's table of positions has room for; ``None`` without such a table."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, table in (*model.named_modules(), *model.named_buffers()):
        if stated is None or name.rpartition(".")[2] not in _POSITION_TABLES:
            continue
        rows = len(getattr(table, "weight", table))
        # OPT's has two rows more than positions; another size is the table of an image tower
        if 0 <= rows - stated <= 2:
            padding = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind it
            return int(stated) if padding is None else int(rows - padding - 1)
    return None


def with_positions(body: Any, batch: Batch) -> Batch:
    """The batch with ``position_ids`` counted from each sample's first unmasked token, where that matters.

    A model with a table of absolute positions otherwise counts the padding on the left, and the states of a
    sample depend on how long the others of its batch are.
    """
    mask = batch["attention_mask"]
    counted = (getattr(m, "wpe", None) or getattr(m, "position_embeddings", None) for m in body.modules())
    absolute = any(isinstance(table, nn.Embedding) and table.padding_idx is None for table in counted)
    named = "position_ids" in inspect.signature(body.forward).parameters
    if not (absolute and named) or "position_ids" in batch or bool(mask[:, 0].all()):
        return batch
    return {**batch, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _accepts(module: nn.Module, name: str) -> bool:
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the block; every module's own mode is restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
