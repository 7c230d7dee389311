"""What a fit moves: a generator of bodies from a shape code and a pose code, and its derivative.

The paper's M(e_s, e_p) (Jiang et al., "Disentangled Human Body Embedding Based on Deep Hierarchical Neural Network",
TVCG 2020, section 7): the decoder, then features to vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacfwd, vmap


class Generator(Protocol):
    """Bodies of one connectivity, y up, metres, from two codes that are standard normal in the training data.

    faces: (F, 3). shape_count, pose_count: numbers in the codes. The fitters see nothing else of a model, so that the
    embedding, its baselines and the tests' small stand-in are fitted alike.
    """

    faces: Int[Tensor, "F 3"]
    shape_count: int
    pose_count: int

    def vertices(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B V 3"]:
        """The bodies, in the dtype of the codes."""
        ...

    def linearized(
        self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V 3 S+P"]]:
        """The bodies and their derivatives by the codes, shape before pose."""
        ...

    def encoded(self, vertices: Float[Tensor, "B V 3"]) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]] | None:
        """A first guess of the codes of meshes that stand as the generator's own do; None where it has no encoder."""
        ...

    def bends(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B H"]:
        """Angles of the hinge joints (elbows, knees), radians, positive where they bend the unnatural way."""
        ...


def forward_jacobian(
    function: Callable[[Tensor, Tensor], Tensor], shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ... S+P"]]:
    """Value and Jacobian of a batched function of both codes, by forward mode: one pass a number of the codes.

    Forward, as there are some hundred numbers in and thousands out.
    """

    def one(codes: Tensor) -> tuple[Tensor, Tensor]:
        value = function(*(part[None] for part in codes.split([shape.shape[1], pose.shape[1]])))[0]
        return value, value

    slope, value = vmap(jacfwd(one, has_aux=True))(torch.cat([shape, pose], 1))
    return value, slope
