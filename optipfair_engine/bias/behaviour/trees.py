"""Sentences that begin alike as one tree of tokens: the shared beginning is computed once.

A node's token has the log-probability of following its ancestors, whatever stands on other branches; a custom
attention mask lets each node see its ancestors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class TokenTree:
    """Nodes are the beginnings that something follows; edges are the tokens that follow them, and are scored.

    Nodes stand in the order in which they were added, so a parent always comes before its children. A
    sequence's last token is an edge but no node: nothing is asked behind it, so the model needn't read it.
    ``paths[s]`` are the edges of sequence s: that of its second token, of its third, and so on. ``scored``
    says of each edge whether some sequence asks for it.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    edge_nodes: list[int] = field(default_factory=list)
    edge_tokens: list[int] = field(default_factory=list)
    scored: list[bool] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)
    _edges: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> TokenTree:
        """The tree of these sequences, of at least two tokens each (a forest, if the first ones differ).

        ``starts[s]`` is the first scored token of sequence s, 1 unless given.
        """
        tree = cls()
        for sequence, start in zip(sequences, starts or [1] * len(sequences), strict=True):
            tree.add(sequence, start)
        return tree

    def add(self, sequence: Sequence[int], start: int = 1) -> None:
        """Add one sequence, scored from ``start`` on; its path comes last in ``paths``."""
        node = self._child(-1, sequence[0])
        path = []
        for position, token in enumerate(sequence[1:], 1):
            edge = self._edge(node, token)
            self.scored[edge] |= position >= start
            path.append(edge)
            if position < len(sequence) - 1:
                node = self._child(node, token)
        self.paths.append(path)

    def _child(self, parent: int, token: int) -> int:
        found = self._children.get((parent, token))
        if found is not None:
            return found
        number = self._children[parent, token] = len(self.ids)
        self.ids.append(token)
        self.parents.append(parent)
        self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        return number

    def _edge(self, node: int, token: int) -> int:
        found = self._edges.get((node, token))
        if found is not None:
            return found
        number = self._edges[node, token] = len(self.edge_nodes)
        self.edge_nodes.append(node)
        self.edge_tokens.append(token)
        self.scored.append(False)
        return number

    @property
    def is_chain(self) -> bool:
        """Whether it is one sequence: then a model's own causal mask does."""
        return all(parent == number - 1 for number, parent in enumerate(self.parents))

    def visible(self, width: int) -> Tensor:
        """Which nodes each may see ``[width, width]``: itself and its ancestors; padding sees itself."""
        seen = torch.eye(width, dtype=torch.bool)
        for number, parent in enumerate(self.parents):
            if parent >= 0:
                seen[number] |= seen[parent]
        return seen


@dataclass(frozen=True)
class TreeBatch:
    """Padded trees: ids, positions ``[trees, nodes]`` and who sees whom ``[trees, 1, nodes, nodes]``."""

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor

    @classmethod
    def of(cls, trees: Sequence[TokenTree], padding_id: int) -> TreeBatch:
        """Stack trees of different sizes."""
        width = max(len(tree.ids) for tree in trees)
        ids = torch.full((len(trees), width), padding_id, dtype=torch.int64)
        positions = torch.zeros_like(ids)
        for row, tree in enumerate(trees):
            ids[row, : len(tree.ids)] = torch.tensor(tree.ids)
            positions[row, : len(tree.ids)] = torch.tensor(tree.depths)
        return cls(ids, positions, torch.stack([tree.visible(width) for tree in trees])[:, None])
