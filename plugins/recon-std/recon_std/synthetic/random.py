"""Random numbers for a batch: from one generator, or each row's from a generator of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

REFILL = 1024
"""Numbers fetched at once from each generator."""


class RowGenerators:
    """A generator for each of B rows, or groups of neighbouring rows: what a row draws does not depend on the others.

    Numbers are fetched from the generators many at a time, since a call costs more than a thousand numbers. On the CPU.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)
        self._stock: dict[Callable[..., Tensor], Float[Tensor, "B N"]] = {}

    def draw(self, kind: Callable[..., Tensor], *shape: int) -> Float[Tensor, ...]:
        """kind: torch.rand or torch.randn. The first of `shape` is a multiple of B."""
        rows = len(self.generators)
        needed = math.prod(shape) // max(rows, 1)
        stock = self._stock.get(kind)
        if stock is None or stock.shape[1] < needed:
            size = max(needed, REFILL)
            stock = torch.stack([kind(size, generator=generator) for generator in self.generators])
        self._stock[kind] = stock[:, needed:]
        return stock[:, :needed].reshape(shape).contiguous()


Source = torch.Generator | RowGenerators


def rand(source: Source, *shape: int, device: torch.device | None = None) -> Float[Tensor, ...]:
    """Uniform numbers in [0, 1) of this shape, rows first."""
    if isinstance(source, RowGenerators):
        return source.draw(torch.rand, *shape)
    return torch.rand(shape, generator=source, device=device)


def randn(source: Source, *shape: int, device: torch.device | None = None) -> Float[Tensor, ...]:
    """Normal numbers of this shape, rows first."""
    if isinstance(source, RowGenerators):
        return source.draw(torch.randn, *shape)
    return torch.randn(shape, generator=source, device=device)


def randint(source: Source, end: int, *shape: int, device: torch.device | None = None) -> Int[Tensor, ...]:
    """Integers in 0..end - 1 of this shape, rows first; `end` far below 2^24."""
    if isinstance(source, RowGenerators):
        return (source.draw(torch.rand, *shape) * end).long()
    return torch.randint(end, shape, generator=source, device=device)
