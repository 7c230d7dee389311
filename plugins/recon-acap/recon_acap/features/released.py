"""Features to points by the files of the released model (github.com/Juyong/DHNN_BodyRepresentation)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.features.arrays import Array, to_tensor
from recon_acap.features.codec import edge_sums, map_columns
from recon_acap.features.logarithm import to_affine
from recon_acap.features.solver import SparseMap
from recon_core.errors import AssetError


class ReleasedPoints:
    """points = inverse @ sum over half edges (v, w) of weight (T_v + T_w) (q_v - q_w), as the released model does it.

    reference: (V, 3), template.obj. half_edges: (H, 2), from and to, in OpenMesh's order. edge_weights: (H,), its
    template_ews.npy, one a half edge and not symmetric. inverse: (V, V), its pA_acap.npy.

    Raises AssetError when the files do not belong together.
    """

    def __init__(
        self,
        reference: Float[Array, "V 3"],
        half_edges: Int[Array, "H 2"],
        edge_weights: Float[Array, " H"],
        inverse: Float[Array, "V V"],
    ) -> None:
        self.reference, self.inverse = to_tensor(reference).double(), to_tensor(inverse)
        pairs, weights = to_tensor(half_edges).long(), to_tensor(edge_weights).double()
        count = len(self.reference)
        if self.inverse.shape != (count, count) or len(pairs) != len(weights) or pairs.max() >= count:
            raise AssetError(
                f"released ACAP files: template of {count} vertices, inverse {tuple(self.inverse.shape)}, {len(pairs)} "
                f"half edges up to vertex {int(pairs.max())}, {len(weights)} weights; take all from one model"
            )
        start, end = pairs.numpy().T
        self._right_side = SparseMap(edge_sums(start, end, weights.numpy(), self.reference.numpy()))

    def right_side(self, features: Float[Tensor, "B V 9"]) -> Float[Tensor, "B V 3"]:
        """The sums that `inverse` is applied to."""
        return self._right_side(map_columns(to_affine(features))).unflatten(1, (-1, 3)).transpose(0, 1)

    def reconstruct(self, features: Float[Tensor, "B V 9"], anchor: int | None = None) -> Float[Tensor, "B V 3"]:
        """Points with vertex `anchor` at the origin, or moved by the median of what the reference is off by.

        The released model takes anchor 6263 (base) or 3500 (extension), and of an even count the lower median.
        """
        points = self.inverse.to(features) @ self.right_side(features)
        if anchor is not None:
            return points - points[:, anchor : anchor + 1]
        return points + torch.median(self.reference.to(points) - points, dim=1, keepdim=True).values
