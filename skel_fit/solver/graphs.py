"""Work on a GPU recorded once as a CUDA graph and replayed: a block's launches become one.

Only for work that never looks at its results: the engine's blocks with the Triton kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made", bound=tuple[Any, ...])


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    made: tuple[Any, ...]


class Graphs:
    """Recorded work by name. Inputs of one place, shape and kind share their memory, and so do the
    graphs: one runs after the other and its results are copied out."""

    def __init__(self) -> None:
        self._recorded: dict[Hashable, _Recorded] = {}
        self._inputs: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._pool: Any = None
        self._refused = False

    def run(self, name: Hashable, work: Callable[..., Made], *given: Any) -> Made:
        """work(*given), given and result being nested tuples of tensors on one GPU.

        The work of one name must always be the same, on inputs of the same shapes."""
        if self._refused:
            return work(*given)
        inputs = list(_leaves(given))
        key = (name, *(leaf.shape for leaf in inputs))
        held = [self._input(place, leaf) for place, leaf in enumerate(inputs)]
        if key not in self._recorded:
            try:
                self._recorded[key] = self._record(work, given, held)
            except RuntimeError as error:
                self._refused = True
                first = str(error).splitlines()[0]
                warnings.warn(f"no CUDA graphs, launches one by one: {first}", stacklevel=2)
                return work(*given)
        recorded = self._recorded[key]
        for mine, leaf in zip(recorded.inputs, inputs, strict=True):
            mine.copy_(leaf)
        recorded.graph.replay()
        made: Made = _rebuilt(recorded.made, (leaf.clone() for leaf in _leaves(recorded.made)))
        return made

    def _input(self, place: int, leaf: Tensor) -> Tensor:
        key = (place, leaf.shape, leaf.dtype)
        if key not in self._inputs:
            self._inputs[key] = torch.empty_like(leaf, memory_format=torch.contiguous_format)
        return self._inputs[key]

    def _record(
        self, work: Callable[..., Made], given: tuple[Any, ...], held: list[Tensor]
    ) -> _Recorded:
        for mine, leaf in zip(held, _leaves(given), strict=True):
            mine.copy_(leaf)
        mine_given = _rebuilt(given, iter(held))
        # once outside: kernels are compiled, tables uploaded
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work(*mine_given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = work(*mine_given)
        self._pool = self._pool or graph.pool()
        return _Recorded(graph, held, made)


def _leaves(nested: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, in order."""
    if isinstance(nested, Tensor):
        yield nested
    else:
        for part in nested:
            yield from _leaves(part)


def _rebuilt(like: Any, leaves: Iterator[Tensor]) -> Any:
    """Tuples nested as in `like`, of other tensors."""
    if isinstance(like, Tensor):
        return next(leaves)
    parts = [_rebuilt(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
