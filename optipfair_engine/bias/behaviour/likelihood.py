"""Log-likelihoods of sentences by causal models, pseudo-log-likelihoods by masked ones, many at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from optipfair_engine.architectures import locate
from optipfair_engine.bias.activations.batching import (
    Prompt,
    asked_only,
    body_of,
    check_continues,
    check_prompts,
    inference,
    pad,
    padding_id,
    within_budget,
)
from optipfair_engine.bias.behaviour.trees import TokenTree, TreeBatch
from optipfair_engine.errors import TokenizerError
from optipfair_engine.progress import Reporter, null_reporter

#: Nodes (padding included) of one forward pass: fewer would read the weights too often.
TOKEN_BUDGET: Final = 1024
#: Rows of logits held at once where the head is a plain matrix, and numbers of logits where it isn't.
LOGIT_ROWS: Final = 128
LOGIT_NUMBERS: Final = 2**27
#: About how many nodes a tree has. Larger ones share more beginnings and waste less padding, but the
#: attention of each node is computed with all nodes of its tree.
TREE_NODES: Final = 112


@dataclass(frozen=True)
class ScoredText:
    """Token ids of which those from ``start`` on are scored (``start`` ≥ 1: something must stand before)."""

    ids: tuple[int, ...]
    start: int = 1


Scores = npt.NDArray[np.float64]


class CausalScorer:
    """Σ log p(token | tokens before) of groups of sequences, with their common beginnings computed once.

    Not every family can attend along a tree, nor is every family's head a plain matrix: both short cuts are
    tried on the first group and only used if they reproduce the model's own logits.
    """

    def __init__(self, model: Any, *, token_budget: int = TOKEN_BUDGET) -> None:
        self._model, self._view = model, locate(model)
        self._budget = token_budget
        check_continues(self._view)
        self._head = model.get_output_embeddings()
        self._trees_work: bool | None = None
        self._head_works: bool | None = None
        self.forwards = 0

    def score(
        self, groups: Sequence[Sequence[ScoredText]], *, report: Reporter = null_reporter
    ) -> list[list[tuple[float, int]]]:
        """(sum of log-probabilities, number of scored tokens) of every sequence of every group."""
        self._check(groups)
        with inference(self._model):
            self._try_short_cuts(groups)
            trees, places = self._plant([sequence for group in groups for sequence in group])
            scores = self._edge_scores(trees, report)
        totals = iter([(scores[tree], trees[tree].paths[path]) for tree, path in places])
        return [[_total(sequence, *next(totals)) for sequence in group] for group in groups]

    def _check(self, groups: Sequence[Sequence[ScoredText]]) -> None:
        """Refuse ids that the model lacks, and sentences longer than its positions."""
        prompts = [Prompt("", text.ids, ()) for group in groups for text in group]
        check_prompts(self._view, prompts)

    def _plant(self, sequences: Sequence[ScoredText]) -> tuple[list[TokenTree], list[tuple[int, int]]]:
        """Trees that hold all sequences, and of each sequence (tree, number of its path there).

        Neighbours in the order of their tokens share most: they go into one tree until it is full.
        """
        order = sorted(range(len(sequences)), key=lambda s: sequences[s].ids)
        ordered = [sequences[s].ids for s in order]
        shared = [0, *map(_shared, ordered, ordered[1:])]
        left = _nodes_from([len(ids) - 1 for ids in ordered], shared)
        trees: list[TokenTree] = []
        places, limit = [(0, 0)] * len(sequences), 0
        for number, ids, common, nodes in zip(order, ordered, shared, left, strict=True):
            if not trees or _is_full(trees[-1], limit, common / len(ids)):
                trees.append(TokenTree())
                # what leaves trees of one size: they pad one another least
                whole = common + nodes
                limit = whole // max(1, round(whole / TREE_NODES)) if self._trees_work else 0
            places[number] = (len(trees) - 1, len(trees[-1].paths))
            trees[-1].add(ids, sequences[number].start)
        return trees, places

    def _try_short_cuts(self, groups: Sequence[Sequence[ScoredText]]) -> None:
        """Compare both short cuts with the model's own logits, on the longest sequence and a branch."""
        if self._trees_work is not None or not any(groups):
            return
        tried = _longest_and_a_branch(groups)
        chains = [TokenTree.of([sequence.ids]) for sequence in tried]
        tree = TokenTree.of([sequence.ids for sequence in tried])
        self._trees_work, self._head_works = False, False
        expected = [self._batch_scores([alone])[0] for alone in chains]
        if self._could_take_trees(max(len(sequence.ids) for sequence in tried)):
            for self._head_works in (True, False):
                found = self._attempt([tree])
                along = [found[0][path] for path in tree.paths] if found else None
                self._trees_work = _agree(expected, along, self._tolerance)
                if self._trees_work:
                    return
        self._head_works = True
        self._head_works = _agree(expected, self._attempt(chains), self._tolerance)

    def _could_take_trees(self, longest: int) -> bool:
        """Whether positions can be given, and no window, which a tree's mask would override, is shorter.

        In half precision a trial alone might take such errors for rounding.
        """
        parameters = inspect.signature(body_of(self._view).forward).parameters
        window = getattr(self._view.config, "sliding_window", None)
        return "position_ids" in parameters and (window is None or window >= longest)

    @property
    def _tolerance(self) -> float:
        """Rounding apart, short cuts are exact; half precision rounds a token's score to some tenths."""
        return 1e-3 if next(self._model.parameters()).dtype in (torch.float32, torch.float64) else 0.5

    def _attempt(self, trees: Sequence[TokenTree]) -> list[Scores] | None:
        try:
            return self._batch_scores(trees)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return None  # a family that takes no such mask or has no such head: the long way works

    def _edge_scores(self, trees: Sequence[TokenTree], report: Reporter) -> list[Scores]:
        """Log-probability of every edge's token after its node (NaN: not scored), largest trees first."""
        order = sorted(range(len(trees)), key=lambda t: -len(trees[t].ids))
        scores: list[Scores] = [np.zeros(0)] * len(trees)
        budget = self._budget
        if not self._head_works:
            budget = min(budget, LOGIT_NUMBERS // len(self._head.weight))
        for run in within_budget([len(trees[t].ids) for t in order], budget):
            chosen = [order[i] for i in run]
            for t, values in zip(chosen, self._batch_scores([trees[t] for t in chosen]), strict=True):
                scores[t] = values
            report("bias", run.stop, len(trees), f"item {run.stop} of {len(trees)}")
        return scores

    def _batch_scores(self, trees: Sequence[TokenTree]) -> list[Scores]:
        self.forwards += 1
        hidden = self._forward(trees)
        width = hidden.shape[1]
        places = torch.tensor([r * width + node for r, tree in enumerate(trees) for node in tree.edge_nodes])
        tokens = torch.tensor([token for tree in trees for token in tree.edge_tokens])
        scored = torch.tensor([scored for tree in trees for scored in tree.scored])
        values = np.full(len(scored), np.nan)
        values[scored.numpy()] = self._log_probabilities(hidden.flatten(0, 1), places[scored], tokens[scored])
        ends = np.cumsum([len(tree.edge_nodes) for tree in trees])
        return np.split(values, ends[:-1])

    def _forward(self, trees: Sequence[TokenTree]) -> Tensor:
        """Hidden states (or logits, where the head is not a plain one) ``[trees, nodes, …]``."""
        model: nn.Module = body_of(self._view) if self._head_works else self._model
        device = next(self._view.layers.parameters()).device
        if all(tree.is_chain for tree in trees):
            padded = pad([tree.ids for tree in trees], padding_id(self._model))
            inputs = {"input_ids": padded.input_ids, "attention_mask": padded.attention_mask}
        else:
            batch = TreeBatch.of(trees, padding_id(self._model))
            dtype = next(self._view.layers.parameters()).dtype
            mask = torch.zeros(batch.visible.shape, dtype=dtype).masked_fill_(
                ~batch.visible, torch.finfo(dtype).min
            )
            inputs = {
                "input_ids": batch.input_ids,
                "attention_mask": mask,
                "position_ids": batch.position_ids,
            }
        output = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False)
        states: Tensor = output.last_hidden_state if self._head_works else output.logits
        return states

    def _log_probabilities(self, states: Tensor, places: Tensor, tokens: Tensor) -> Scores:
        """Log p of each token behind a place in ``states`` ``[places, …]``: a place is asked but once."""
        distinct, rows = torch.unique(places, return_inverse=True)
        chosen, found = [], []
        for start in range(0, len(distinct), LOGIT_ROWS):
            picked = states[distinct[start : start + LOGIT_ROWS].to(states.device)]
            logits = (self._head(picked) if self._head_works else picked).float()
            here = ((rows >= start) & (rows < start + LOGIT_ROWS)).nonzero()[:, 0]
            row, token = (rows[here] - start).to(logits.device), tokens[here].to(logits.device)
            # one pass over the vocabulary, and nearer to the truth than logsumexp's several
            found.append(logits.log_softmax(dim=1)[row, token].double())
            chosen.append(here)
        values = np.zeros(len(places))
        if found:
            values[torch.cat(chosen).numpy()] = torch.cat(found).cpu().numpy()
        return values


def _longest_and_a_branch(groups: Sequence[Sequence[ScoredText]]) -> list[ScoredText]:
    """The longest sequence, and another (of its group, if there is one) that leaves it before its end."""
    group = max(groups, key=lambda g: max((len(sequence.ids) for sequence in g), default=0))
    longest = max(group, key=lambda sequence: len(sequence.ids))
    others = chain(group, chain.from_iterable(groups))
    # a last token is no node: what differs there only doesn't branch
    branch = (o for o in others if _shared(longest.ids, o.ids) < min(len(longest.ids), len(o.ids)) - 1)
    return [longest, *islice(branch, 1)]


def _nodes_from(nodes: Sequence[int], shared: Sequence[int]) -> list[int]:
    """How many nodes each sequence and all behind it add to a tree of those before it."""
    added = [max(0, own - common) for own, common in zip(nodes, shared, strict=True)]
    return list(accumulate(reversed(added)))[::-1]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _is_full(tree: TokenTree, limit: int, shared: float) -> bool:
    """Whether the next sequence, which shares this part of itself with the last one, begins another tree."""
    size = len(tree.ids)
    return size >= limit and (shared <= 0.25 or size >= 1.5 * limit)


def _total(sequence: ScoredText, scores: Scores, path: Sequence[int]) -> tuple[float, int]:
    """(sum of log-probabilities, number) of a sequence's scored tokens."""
    return float(scores[path[sequence.start - 1 :]].sum()), len(sequence.ids) - sequence.start


def _agree(expected: Sequence[Scores], found: Sequence[Scores] | None, tolerance: float) -> bool:
    if found is None or len(found) != len(expected):
        return False
    return all(
        len(e) == len(f) and bool(np.allclose(e, f, atol=tolerance, rtol=0))
        for e, f in zip(expected, found, strict=True)
    )


@dataclass(frozen=True)
class MaskedText:
    """Token ids (with special tokens), and the ``positions`` that are scored, ascending.

    ``revealed``: the positions are those of one word, whose tokens are scored from left to right: one mask
    stands for a token and all of the word's behind it, so that neither their number nor their text tells.
    Otherwise each is masked alone.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    revealed: bool = False

    def masked(self, position: int, mask_id: int) -> tuple[int, ...]:
        """The ids with the mask at one of the positions."""
        behind = self.positions[-1] + 1 if self.revealed else position + 1
        return (*self.ids[:position], mask_id, *self.ids[behind:])


class MaskedScorer:
    """Σ log p(token | the others), each scored token masked in turn (Salazar et al. 2020)."""

    def __init__(self, model: Any, mask_id: int, *, token_budget: int = TOKEN_BUDGET) -> None:
        self._model, self._view, self._mask_id, self._budget = model, locate(model), mask_id, token_budget
        self.forwards = 0

    def score(
        self, sentences: Sequence[MaskedText], *, report: Reporter = null_reporter
    ) -> list[tuple[float, int]]:
        """(sum of log-probabilities, number of scored tokens) of every sentence.

        Raises:
            TokenizerError: an id that the model lacks.
            InvalidOptionError: a sentence longer than the model's positions.
        """
        check_prompts(self._view, [Prompt("", text.ids, ()) for text in sentences])
        jobs = [(s, position) for s, text in enumerate(sentences) for position in text.positions]
        jobs.sort(key=lambda job: -len(sentences[job[0]].ids))
        sums = np.zeros(len(sentences))
        lengths = [len(sentences[s].ids) for s, _ in jobs]
        with inference(self._model):
            for run in within_budget(lengths, self._budget):
                chosen = [jobs[i] for i in run]
                values = self._batch([(sentences[s], position) for s, position in chosen])
                np.add.at(sums, [s for s, _ in chosen], values)
                report("bias", run.stop, len(jobs), f"masked token {run.stop} of {len(jobs)}")
        return [(float(total), len(text.positions)) for total, text in zip(sums, sentences, strict=True)]

    def _batch(self, jobs: Sequence[tuple[MaskedText, int]]) -> Scores:
        self.forwards += 1
        batch = pad(
            [text.masked(position, self._mask_id) for text, position in jobs], padding_id(self._model)
        )
        device = next(self._view.layers.parameters()).device
        positions = torch.tensor([position for _, position in jobs], device=device)
        tokens = torch.tensor([text.ids[position] for text, position in jobs], device=device)
        with asked_only(self._model.get_output_embeddings(), positions):
            logits = self._model(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)
            ).logits
        asked = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(jobs)), positions]
        log_p = asked.float().log_softmax(dim=1)
        values: Scores = log_p.gather(1, tokens[:, None])[:, 0].double().cpu().numpy()
        return values


def start_token(tokenizer: Any) -> int:
    """The token that stands before a text, so that its first word is scored too: BOS, else EOS.

    Raises:
        TokenizerError: the tokenizer has neither.
    """
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    raise TokenizerError("The tokenizer has neither a begin nor an end token to put before a sentence")


def is_masked_model(model: Any) -> bool:
    """Whether the model fills masks (BERT) and doesn't continue texts."""
    return type(model).__name__.endswith("ForMaskedLM")
