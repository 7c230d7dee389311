"""Cheaper training of the two large layers: through the principal components of the training features.

Encoder input and difference path's output have 9|V| numbers, which live near a space of a few hundred dimensions.
While the layers go through that space, a step costs a fraction; `fold` then makes of them the plain layers that
compute the same, which train on or are saved.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_acap.network import FEATURE_DIMS, BodyEmbedding, scaling

FITTED_TO = 2500
"""Meshes that the components are computed of."""


class FixedLinear(nn.Module):
    """x -> x M^T + bias, of which only the bias is trained."""

    matrix: Float[Tensor, "N M"]

    def __init__(self, matrix: Float[Tensor, "N M"], bias: Float[Tensor, " N"]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.contiguous())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Float[Tensor, "B M"]) -> Float[Tensor, "B N"]:
        return nn.functional.linear(x, self.matrix, self.bias)


def principal_components(
    features: Float[Tensor, "N D"], rank: int
) -> tuple[Float[Tensor, " D"], Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """Mean, orthonormal directions, and standard deviation along each, largest first; K = rank at most N."""
    rows = features[:: max(1, len(features) // FITTED_TO)]
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    kept = values > 1e-6 * values[0]
    values, vectors = values[kept], vectors[:, kept]
    directions = (vectors.T.to(centred) @ centred) / values.sqrt()[:, None].to(centred)
    return mean, directions, (values / len(rows)).sqrt().to(centred)


@torch.no_grad()
def compress(
    embedding: BodyEmbedding, features: Float[Tensor, "N V 9"], parts: Float[Tensor, "N K 9"], rank: int
) -> None:
    """Put the components of scaled features before the encoder's first layer and behind the difference path's last.

    With a base path, what the present skinning weights make of parts is added to what the difference can be. parts:
    scaled features of the parts of the same meshes.
    """
    assert embedding.encoder is not None
    decoder = embedding.decoder
    mean, directions, deviation = principal_components(features.flatten(1), rank)
    # Between raw and whitened: the many small components count, but not as much as the few large ones.
    inward = directions / (deviation * deviation[0]).sqrt()[:, None]
    first = embedding.encoder.shared[0]
    assert isinstance(first, nn.Linear)
    hidden = first.out_features
    embedding.encoder.shared[0] = nn.Sequential(
        FixedLinear(inward, -(inward @ mean)), nn.Linear(len(inward), hidden, device=mean.device)
    )
    outward = directions * deviation[:, None]
    if embedding.config.variant == "hierarchical":
        base, blended = _base_path(embedding, parts.mean(0, keepdim=True))
        mean = mean - base
        outside = blended - (blended @ directions.T) @ directions
        outward = torch.cat([outward, torch.linalg.qr(outside.T).Q.T * deviation[len(deviation) // 4]])
    width = decoder.difference.output.in_features
    pair = nn.Sequential(nn.Linear(width, len(outward), device=mean.device), FixedLinear(outward.T, mean))
    decoder.difference.output = pair  # type: ignore[assignment]  # until `fold` makes one layer of the two


def _base_path(
    embedding: BodyEmbedding, parts: Float[Tensor, "1 K 9"]
) -> tuple[Float[Tensor, " D"], Float[Tensor, "K9 D"]]:
    """Scaled base features of scaled part features, and their derivative by the unscaled ones, D = 9|V|."""
    decoder = embedding.decoder
    to_scaled = scaling(decoder.bounds)
    base = to_scaled.scale(decoder.skinning(scaling(decoder.part_bounds).unscale(parts)))
    weights = decoder.skinning.weights()
    slope = to_scaled.scale(torch.ones_like(base)) - to_scaled.scale(torch.zeros_like(base))
    blended = torch.einsum("vk,ij,vj->kivj", weights, torch.eye(FEATURE_DIMS).to(weights), slope[0])
    return base.flatten(), blended.flatten(2).flatten(0, 1)


@torch.no_grad()
def fold(embedding: BodyEmbedding) -> None:
    """Replace what `compress` put in by single layers that compute the same. Nothing to do where it was not called."""
    assert embedding.encoder is not None
    for owner, name in ((embedding.encoder.shared, "0"), (embedding.decoder.difference, "output")):
        pair = getattr(owner, name)
        if isinstance(pair, nn.Sequential):
            setattr(owner, name, _product(pair))


def _product(pair: nn.Sequential) -> nn.Linear:
    (first, inner), (second, outer) = map(_affine, pair)
    layer = nn.Linear(first.shape[1], second.shape[0], device=first.device)
    layer.weight.copy_(second @ first)
    layer.bias.copy_(second @ inner + outer)
    return layer


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix and offset of either kind of layer."""
    assert isinstance(layer, nn.Linear | FixedLinear)
    return (layer.matrix if isinstance(layer, FixedLinear) else layer.weight), layer.bias
