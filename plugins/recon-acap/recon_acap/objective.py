"""What the embedding is trained on: equations 10 to 13, in two phases (appendix)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.network import BodyEmbedding, Decoded
from recon_core.interfaces import Settings
from recon_core.structures import Batched, LossValue


class Weights(Settings):
    """Weights of equation 13. The defaults are the first phase (row 2 of table 9); `FINE_TUNING` is the second."""

    shape_kl: float = 1.0
    pose_kl: float = 1.0
    neutral: float = 2.5e3
    posed: float = 2.5e4
    coarse: float = 0.6
    """Weights of the part features, as a share of those of the vertices' features."""


FINE_TUNING = Weights(neutral=1e3, posed=1e4)


@dataclass(frozen=True)
class Batch(Batched):
    """B meshes, all numbers scaled. features, neutral: (B, V, 9) of the mesh and of the same person's neutral mesh.

    parts, neutral_parts: (B, K, 9) likewise. same_person, same_pose: (B,) a row of the batch with the same person,
    or the same pose; its own row where there is no other.
    """

    features: Float[Tensor, "B V 9"]
    neutral: Float[Tensor, "B V 9"]
    parts: Float[Tensor, "B K 9"]
    neutral_parts: Float[Tensor, "B K 9"]
    same_person: Int[Tensor, " B"]
    same_pose: Int[Tensor, " B"]


class _Codes(NamedTuple):
    shape: Float[Tensor, "B S"]
    pose: Float[Tensor, "B P"]


def kl_to_standard_normal(mean: Float[Tensor, "B D"], std: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """D_KL(N(mean, std^2) || N(0, I)) in nats (equation 12)."""
    variance = std**2
    return 0.5 * (mean**2 + variance - 1 - variance.clamp_min(1e-12).log()).sum(1)


def objective(
    embedding: BodyEmbedding,
    batch: Batch,
    weights: Weights,
    exchange: float = 0.0,
    generator: torch.Generator | None = None,
) -> LossValue:
    """The loss of equation 13 for each mesh, with its terms unweighted.

    exchange: chance that a mesh is decoded from the shape code of another mesh of the same person and the pose code
    of another mesh of the same pose: what should come out is known, so each code learns to hold only what it is for.
    0 is the paper's. The KL terms and the neutral target are not affected.
    """
    assert embedding.encoder is not None
    latent = embedding.encoder(batch.features)
    codes = _Codes(*latent.sample(generator))
    if exchange:
        device = batch.same_person.device
        swap = torch.rand(len(batch.features), generator=generator, device=device) < exchange
        rows = torch.arange(len(swap), device=device)
        codes = _Codes(
            codes.shape[torch.where(swap, batch.same_person, rows)],
            codes.pose[torch.where(swap, batch.same_pose, rows)],
        )
    posed, posed_parts = _errors(embedding.decoder(*codes), batch.features, batch.parts)
    shape_kl = kl_to_standard_normal(latent.shape, latent.shape_std)
    pose_kl = kl_to_standard_normal(latent.pose, latent.pose_std)
    loss = (
        weights.shape_kl * shape_kl + weights.pose_kl * pose_kl + weights.posed * (posed + weights.coarse * posed_parts)
    )
    terms = {"shape_kl": shape_kl, "pose_kl": pose_kl, "posed": posed, "posed_parts": posed_parts}
    if embedding.config.variant != "meshvae":  # which has one code, so that no part of it is a neutral body
        neutral, neutral_parts = _errors(embedding.decoder(codes.shape, None), batch.neutral, batch.neutral_parts)
        loss = loss + weights.neutral * (neutral + weights.coarse * neutral_parts)
        terms |= {"neutral": neutral, "neutral_parts": neutral_parts}
    return LossValue(loss, terms)


def _errors(
    decoded: Decoded, features: Float[Tensor, "B V 9"], parts: Float[Tensor, "B K 9"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Mean absolute errors of vertex and part features (equations 10, 11); 0 for a network without parts."""
    vertex = (decoded.features - features).abs().mean((1, 2))
    if decoded.parts is None:
        return vertex, torch.zeros_like(vertex)
    return vertex, (decoded.parts - parts).abs().mean((1, 2))
