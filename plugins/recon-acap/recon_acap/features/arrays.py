"""NumPy arrays in, NumPy arrays out: the features are of use without knowing torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    # Which of the two comes back depends on which was given, and that no annotation says.
    Array: TypeAlias = Any
else:
    Array: TypeAlias = Tensor | np.ndarray


def to_tensor(array: Array) -> Tensor:
    """The array as a tensor; integers and floats keep their type."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def accepts_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn NumPy arguments into tensors, and the tensor returned into an array if any argument was one."""

    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        if not any(isinstance(value, np.ndarray) for value in given):
            return function(*arguments, **named)
        turn = lambda value: to_tensor(value) if isinstance(value, np.ndarray) else value  # noqa: E731
        result = function(*map(turn, arguments), **{key: turn(value) for key, value in named.items()})
        return result.detach().cpu().numpy() if isinstance(result, Tensor) else result

    return wrapped
