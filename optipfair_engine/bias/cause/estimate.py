"""What exchanging each unit would move, estimated for all units at once from one gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from optipfair_engine.architectures import ModelView
from optipfair_engine.bias.activations.batching import within_budget
from optipfair_engine.bias.activations.stream import EncodedPair
from optipfair_engine.bias.cause.exchange import Exchange, PairBatch, apart, total_variation
from optipfair_engine.bias.cause.places import Group, changed
from optipfair_engine.bias.statistics.significance import Array
from optipfair_engine.calibration.runner import eval_mode
from optipfair_engine.progress import Reporter

#: Padded tokens of a pass that keeps all of its activations for the way back.
_TOKENS: Final = 128
#: Differences of logits below this share of them are rounding.
_ROUNDING: Final = 1e-5


@dataclass(frozen=True)
class Estimates:
    """Of each unit, in the order of the groups; pairs with nothing to move, or to exchange, have NaN.

    Attributes:
        effects: estimated share of the logits' difference that the exchange moves ``[pairs, units]``.
        reactions: how far the unit's activations are apart, as a mean over positions and pairs of the norm of
            their difference, of a neuron times the norm of its output weights ``[units]``.
        distances: total variation distance of the pair's next-token distributions ``[pairs]``.
    """

    effects: Array
    reactions: Array
    distances: Array

    @property
    def told(self) -> list[bool]:
        """Whether each pair has something to move."""
        return [not math.isnan(total) for total in self.effects.sum(axis=1)]


def estimate_effects(
    view: ModelView, groups: Sequence[Group], pairs: Sequence[EncodedPair], report: Reporter
) -> Estimates:
    """Attribution patching (Nanda 2023; Kramár et al. 2024, arXiv 2403.00745), a first-order estimate.

    For the difference d of a pair's logits, ⟨z, d⟩ / ‖d‖² is differentiated at each prompt, and multiplied by
    what the exchange would change; the two directions are averaged. Computed in the checkpoint's number type:
    in another one, every weight's copy would have to be kept for the way back.

    Raises:
        NonFiniteResultError: the model's logits overflow.
    """
    effects, reactions, distances = [], [], []
    with eval_mode(view.model):
        for run in within_budget([pair.length for pair in pairs], _TOKENS, rows_each=2):
            batch = PairBatch(view, pairs[run.start : run.stop])
            with torch.enable_grad(), _observed(view, groups) as seen:
                logits = batch.logits()
                gradients = _gradients(logits, [seen[group.site.key] for group in groups])
            found = [
                _of_group(group, batch.exchange, seen[group.site.key].detach(), gradient)
                for group, gradient in zip(groups, gradients, strict=True)
            ]
            moved = torch.cat([effect for effect, _ in found], dim=1)
            effects.append(moved / _sizes(logits.detach(), pairs[run.start : run.stop]))
            reactions.append(torch.cat([reaction for _, reaction in found], dim=1))
            distances.append(total_variation(logits.detach()).double().cpu())
            report("estimate", run.stop, len(pairs), f"gradient of pair {run.stop} of {len(pairs)}")
    whole: Array = torch.cat(effects).numpy()
    return Estimates(whole, torch.cat(reactions).mean(dim=0).numpy(), torch.cat(distances).numpy())


@contextmanager
def _observed(view: ModelView, groups: Sequence[Group]) -> Iterator[dict[str, Tensor]]:
    """Site's key → its activations, with the graph that leads from them to the logits."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def kept(values: Tensor) -> Tensor:
            seen[key] = values
            return values

        return kept

    with ExitStack() as stack:
        embeddings: Any = view.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(_with_graph)
        stack.callback(handle.remove)
        for group in groups:
            stack.enter_context(changed(group.site, keep(group.site.key)))
        yield seen


def _with_graph(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """Frozen weights give no graph; it then begins at the embeddings."""
    return output if output.requires_grad else output.detach().requires_grad_()


def _gradients(logits: Tensor, at: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of the logits along the pair's difference, which is made one long: small ones underflow."""
    direction = torch.nn.functional.normalize(apart(logits.detach()), dim=1)
    along = (logits * direction.repeat_interleave(2, dim=0)).sum()
    return torch.autograd.grad(along, at)


def _sizes(logits: Tensor, pairs: Sequence[EncodedPair]) -> Tensor:
    """Norm of each pair's difference ``[pairs, 1]``; NaN where it is rounding, or no position is aligned."""
    sizes, whole = apart(logits).norm(dim=1), logits[0::2].norm(dim=1)
    aligned = [pair.alignment.first_difference is not None for pair in pairs]
    told = (sizes > _ROUNDING * whole).cpu() & torch.tensor(aligned)
    return torch.where(told, sizes.double().cpu(), torch.nan)[:, None]


def _of_group(group: Group, exchange: Exchange, values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(effect times the difference's size, reaction), each ``[pairs, units]`` in float64 on the CPU."""
    change = exchange.change(values)
    rows, width, _ = change.shape
    shape = (rows, width, group.count, group.size)
    moved = (change * gradient.to(change.dtype)).reshape(shape).sum(dim=(1, 3))
    norms = change.reshape(shape).norm(dim=3)
    positions = (norms.amax(dim=2) > 0).sum(dim=1).clamp_min(1)
    reaction = norms.sum(dim=1) / positions[:, None]
    if group.output_norms is not None:
        reaction = reaction * group.output_norms.to(reaction)
    effect = (moved[0::2] - moved[1::2]) / 2
    return effect.double().cpu(), ((reaction[0::2] + reaction[1::2]) / 2).double().cpu()
