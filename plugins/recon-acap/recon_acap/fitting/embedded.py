"""The body embedding as a generator of the latent fits, with its derivative in closed form behind the decoder."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacfwd, vmap

from recon_acap.features.logarithm import to_affine
from recon_acap.fitting.nearest import nearest_on_mesh
from recon_acap.network import BodyEmbedding
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from recon_std.bodies import load_body
from recon_std.bodies.parts import ANATOMICAL_PARTS

HINGES = (
    ("left_upper_arm", "left_forearm", 1, 1.0),
    ("right_upper_arm", "right_forearm", 1, -1.0),
    ("left_thigh", "left_shank", 0, -1.0),
    ("right_thigh", "right_shank", 0, -1.0),
)
"""Elbows and knees: the part above, the part below, the axis of the reference's T-pose they turn about, and the sign of
the unnatural way, as in recon-std's joint limits."""


class EmbeddedBodies:
    """M(e_s, e_p) of section 7 for the fitters: `Generator` of a trained embedding.

    The network runs in its own precision, everything behind it in that of the codes.
    """

    def __init__(self, embedding: BodyEmbedding) -> None:
        self.embedding = embedding
        self.faces: Int[Tensor, "F 3"] = embedding.faces
        self.shape_count = embedding.config.shape_dims
        self.pose_count = embedding.config.pose_dims

    def vertices(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B V 3"]:
        """See `Generator.vertices`."""
        return self.embedding.codec.reconstruct(self.features(shape, pose))

    def linearized(
        self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B V 3"], Float[Tensor, "B V 3 S+P"]]:
        """See `Generator.linearized`.

        The decoder layer by layer, T(r, s) vertex by vertex; vertices are linear in T (equation 6), so each column of
        the Jacobian is one more right-hand side of the system that is factorised anyway.
        """
        dtype = self.embedding.reference.dtype
        features, by_code = (x.to(shape) for x in self.embedding.decode_slope(shape.to(dtype), pose.to(dtype)))
        affine = lambda f: to_affine(f[None, None])[0, 0]  # noqa: E731
        by_feature = vmap(vmap(jacfwd(affine)))(features)
        slope = by_feature.flatten(2, 3) @ by_code
        return self.embedding.codec.reconstruct(features), self.embedding.codec.reconstructed_slope(
            slope.unflatten(2, (3, 3))
        )

    def encoded(self, vertices: Float[Tensor, "B V 3"]) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]] | None:
        """See `Generator.encoded`: the posteriors' means."""
        if self.embedding.encoder is None:
            return None
        latent = self.embedding.encode(self.embedding.codec.extract(vertices.to(self.embedding.reference.dtype)))
        return latent.shape.to(vertices), latent.pose.to(vertices)

    def bends(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B 4"]:
        """See `Generator.bends`: R of equation 16, from the coarse features. Raises AssetError for a network without
        base path."""
        dtype = self.embedding.reference.dtype
        parts = self.embedding.decode_parts(shape.to(dtype), pose.to(dtype)).to(shape)
        turn = axis_angle_to_matrix(parts[..., :3])
        above, below = ([ANATOMICAL_PARTS.index(hinge[i]) for hinge in HINGES] for i in (0, 1))
        relative = matrix_to_axis_angle(turn[:, above].transpose(-1, -2) @ turn[:, below])
        axes = [hinge[2] for hinge in HINGES]
        return relative[:, range(len(HINGES)), axes] * relative.new_tensor([hinge[3] for hinge in HINGES])

    def regressor(self, skeleton: str) -> Float[Tensor, "J V"]:
        """Joints of a named skeleton as sums over vertices: the free body's regressor, each of its vertices being the
        nearest point of this mesh at rest. Raises UsageError when the free body has no such regressor."""
        return _regressor(self.embedding, skeleton)

    def features(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B V 9"]:
        """ACAP features of the bodies, in the dtype of the codes."""
        dtype = self.embedding.reference.dtype
        return self.embedding.decode(shape.to(dtype), pose.to(dtype)).to(shape)


@cache
def _regressor(embedding: BodyEmbedding, skeleton: str) -> Float[Tensor, "J V"]:
    body = load_body("free")
    full = body.template
    own, faces = embedding.reference.cpu().double().numpy(), embedding.faces.cpu().numpy()
    nearest = nearest_on_mesh(full.double().numpy(), own, faces, exact=True)
    spread = torch.zeros(len(full), -(-len(own) // 3) * 3, dtype=full.dtype)
    corner = torch.from_numpy(faces[nearest.face])
    spread.scatter_(1, corner, torch.from_numpy(nearest.barycentric).to(spread))
    # The regressor is linear: what it makes of the columns, taken as coordinates three at a time, is the product.
    columns = body.regress(spread.unflatten(1, (-1, 3)).transpose(0, 1), skeleton)
    return columns.transpose(0, 1).flatten(1)[:, : len(own)].double()
