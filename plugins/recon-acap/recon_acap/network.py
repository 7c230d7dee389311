"""The hierarchical body embedding: encoder, base path with learnable skinning, difference path (section 5, appendix).

Features are ACAP features: per vertex an axis-angle (radians) and the six numbers xx, xy, xz, yy, yz, zz of a
symmetric stretch, both relative to the reference mesh. The network works on features scaled to [-0.95, 0.95].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import jacfwd, vmap

from recon_acap.features import AcapCodec, FeatureScaling
from recon_core.errors import AssetError
from recon_core.interfaces import Settings

FEATURE_DIMS = 9


Variant = Literal["hierarchical", "baseline", "meshvae"]


class EmbeddingConfig(Settings):
    """Sizes and variant of an embedding; the defaults are the paper's (table 8)."""

    vertices: int
    parts: int = 16
    variant: Variant = "hierarchical"
    """hierarchical: the paper's. baseline: without the base path. meshvae: without it, and shape and pose codes
    enter one perceptron as one code (Tan et al., CVPR 2018), so that nothing is disentangled."""
    shape_dims: int = 50
    pose_dims: int = 72
    hidden: int = 400
    width: int = 800
    neutral: Literal["zero-pose", "shape-branch"] = "zero-pose"
    """What decodes to the neutral body: the pose code 0 (the paper's text), or the shape branch without the pose
    branch (the released code)."""


class Latent(NamedTuple):
    """Normal posteriors of B meshes: means and standard deviations (0 to 2) of both codes."""

    shape: Float[Tensor, "B S"]
    shape_std: Float[Tensor, "B S"]
    pose: Float[Tensor, "B P"]
    pose_std: Float[Tensor, "B P"]

    def sample(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One draw of each code, differentiable in the posterior."""

        def draw(mean: Tensor, std: Tensor) -> Tensor:
            return mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)

        return draw(self.shape, self.shape_std), draw(self.pose, self.pose_std)


class Decoded(NamedTuple):
    """Scaled features of B bodies, and of their parts where the network has a base path."""

    features: Float[Tensor, "B V 9"]
    parts: Float[Tensor, "B K 9"] | None


def scaling(bounds: Float[Tensor, "2 N9"]) -> FeatureScaling:
    """The scaling to [-0.95, 0.95] by each number's largest (row 0) and smallest value in the training set."""
    high, low = bounds.unflatten(1, (-1, FEATURE_DIMS))
    return FeatureScaling(high, low)


def perceptron(*sizes: int) -> nn.Sequential:
    """Units of a fully connected layer and a tanh (appendix)."""
    units: list[nn.Module] = []
    for before, after in pairwise(sizes):
        units += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*units)


class LearnableSkinning(nn.Module):
    """Vertex features as convex combinations of part features (equation 9).

    Weights are a softmax over the allowed parts of each vertex, so that rows lie on the simplex. mask: (K, V) which
    parts are near which vertices; each vertex needs at least one. `logits` are its entries, vertex by vertex.
    """

    vertex: Int[Tensor, " N"]
    part: Int[Tensor, " N"]

    def __init__(self, mask: Bool[Tensor, "K V"]) -> None:
        super().__init__()
        if not bool(mask.any(0).all()):
            alone = int((~mask.any(0)).nonzero()[0])
            raise AssetError(f"skinning mask: vertex {alone} has no part near it; give each vertex at least one")
        vertex, part = mask.bool().T.nonzero().unbind(1)
        self.shape = (mask.shape[1], mask.shape[0])
        self.logits = nn.Parameter(torch.zeros(len(vertex)))
        self.register_buffer("vertex", vertex)
        self.register_buffer("part", part)

    def weights(self) -> Float[Tensor, "V K"]:
        """The skinning weights W: non-negative, rows sum to 1, zero away from the allowed parts."""
        full = self.logits.new_full(self.shape, -torch.inf)
        return full.index_put((self.vertex, self.part), self.logits).softmax(1)

    def forward(self, parts: Float[Tensor, "B K 9"]) -> Float[Tensor, "B V 9"]:
        return self.weights() @ parts


class CodePath(nn.Module):
    """One decoding path: T(S(e_s) + P(e_p)) (equation 8), to N features; for meshVAE T(M([e_s, e_p]))."""

    def __init__(self, config: EmbeddingConfig, count: int) -> None:
        super().__init__()
        sizes = (config.hidden, config.width)
        if config.variant == "meshvae":
            self.joint = perceptron(config.shape_dims + config.pose_dims, *sizes)
        else:
            self.shape = perceptron(config.shape_dims, *sizes)
            self.pose = perceptron(config.pose_dims, *sizes)
        self.output = nn.Linear(config.width, count * FEATURE_DIMS)
        self.joined = config.variant == "meshvae"

    def hidden(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None) -> Float[Tensor, "B W"]:
        """What the last, linear layer reads; without `pose`, of the shape branch alone."""
        if self.joined:
            assert pose is not None
            return self.joint(torch.cat([shape, pose], 1))
        return self.shape(shape) if pose is None else self.shape(shape) + self.pose(pose)

    def forward(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None) -> Float[Tensor, "B N 9"]:
        """Scaled features; without `pose`, the shape branch alone."""
        return self.output(self.hidden(shape, pose)).unflatten(1, (-1, FEATURE_DIMS))


class Decoder(nn.Module):
    """Codes to features: base path W(C(e_s, e_p)) plus difference path D(e_s, e_p) (equation 7).

    bounds: (2, V*9) and part_bounds (2, K*9) largest and smallest value of every feature, as `scaling` takes them.
    """

    bounds: Float[Tensor, "2 V9"]
    part_bounds: Float[Tensor, "2 K9"]

    def __init__(self, config: EmbeddingConfig, mask: Bool[Tensor, "K V"]) -> None:
        super().__init__()
        self.config = config
        limits = torch.tensor([[1.0], [-1.0]])
        self.register_buffer("bounds", limits.repeat(1, config.vertices * FEATURE_DIMS))
        self.difference = CodePath(config, config.vertices)
        if config.variant == "hierarchical":
            self.register_buffer("part_bounds", limits.repeat(1, config.parts * FEATURE_DIMS))
            self.coarse = CodePath(config, config.parts)
            self.skinning = LearnableSkinning(mask)

    def pose_or_zero(self, shape: Tensor, pose: Tensor | None) -> Tensor | None:
        """The pose code that stands for the neutral body where none is given; None to leave its branch out."""
        if pose is None and self.config.neutral == "zero-pose":
            return shape.new_zeros(len(shape), self.config.pose_dims)
        return pose

    def forward(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None) -> Decoded:
        """Scaled features of bodies of these codes; without `pose`, of their neutral bodies."""
        pose = self.pose_or_zero(shape, pose)
        difference = self.difference(shape, pose)
        if self.config.variant != "hierarchical":
            return Decoded(difference, None)
        parts = self.coarse(shape, pose)
        base = self.skinning(scaling(self.part_bounds).unscale(parts))
        return Decoded(scaling(self.bounds).scale(base) + difference, parts)


class Encoder(nn.Module):
    """Scaled features to the posteriors of both codes: two shared layers, then one layer each (section 5.1)."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.shared = perceptron(config.vertices * FEATURE_DIMS, config.width, config.hidden)
        self.shape = nn.Linear(config.hidden, 2 * config.shape_dims)
        self.pose = nn.Linear(config.hidden, 2 * config.pose_dims)

    def forward(self, features: Float[Tensor, "B V 9"]) -> Latent:
        hidden = self.shared(features.flatten(1))
        shape, shape_std = self.shape(hidden).chunk(2, 1)
        pose, pose_std = self.pose(hidden).chunk(2, 1)
        return Latent(shape, 2 * shape_std.sigmoid(), pose, 2 * pose_std.sigmoid())


@dataclass(frozen=True)
class Template:
    """The mesh whose deformations the features are.

    reference: (V, 3) metres, y up, facing +z, T-pose for the shipped one. faces: (F, 3). part: (V,) row of
    `recon_std.bodies.parts.ANATOMICAL_PARTS`. mask: (K, V) the parts near each vertex, which may move it. source:
    (V,) the vertex of the free body that each vertex is, -1 for none.
    """

    reference: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    part: Int[Tensor, " V"]
    mask: Bool[Tensor, "K V"]
    source: Int[Tensor, " V"]


class BodyEmbedding(nn.Module):
    """Shape and pose codes for bodies of one connectivity, and back: features (B, V, 9) and vertices in metres.

    Differentiable. A code distributed as N(0, I) is a body like those trained on; `decode(shape, 0)` is neutral. The
    decoded body has no place and no heading of its own: see `vertices`. encoder: None where a file has no encoder.
    """

    reference: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    part: Int[Tensor, " V"]
    source: Int[Tensor, " V"]

    def __init__(self, config: EmbeddingConfig, template: Template, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        for name in ("reference", "faces", "part", "source"):
            self.register_buffer(name, getattr(template, name))
        self.decoder = Decoder(config, template.mask)
        self.encoder = Encoder(config) if with_encoder else None

    @cached_property
    def codec(self) -> AcapCodec:
        """Features of meshes of this connectivity, and meshes of features."""
        return AcapCodec(self.reference, self.faces)

    def _apply(self, fn: object, recurse: bool = True) -> BodyEmbedding:
        self.__dict__.pop("codec", None)  # factorised for the old device and type
        return super()._apply(fn, recurse)

    def encode(self, features: Float[Tensor, "B V 9"]) -> Latent:
        """Posteriors of the codes of ACAP features. Raises AssetError where the weights came without an encoder."""
        if self.encoder is None:
            raise AssetError("these weights have no encoder: fit the codes to the mesh instead (recon fit)")
        return self.encoder(scaling(self.decoder.bounds).scale(features))

    def decode(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None = None) -> Float[Tensor, "B V 9"]:
        """ACAP features of bodies of these codes; without `pose`, of their neutral bodies."""
        return scaling(self.decoder.bounds).unscale(self.decoder(shape, pose).features)

    def decode_slope(
        self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B V 9"], Float[Tensor, "B V 9 C"]]:
        """`decode`, and its derivative by the C = S + P numbers of both codes: each path by forward mode up to its last
        layer, behind which all is linear."""
        decoder, to_scaled = self.decoder, scaling(self.decoder.bounds)
        slope = to_scaled.unscale_slope(_path_slope(decoder.difference, shape, pose))
        if self.config.variant == "hierarchical":
            parts = scaling(decoder.part_bounds).unscale_slope(_path_slope(decoder.coarse, shape, pose))
            slope = slope + torch.einsum("vk,bkfc->bvfc", decoder.skinning.weights(), parts)
        return self.decode(shape, pose), slope

    def decode_parts(
        self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None = None
    ) -> Float[Tensor, "B K 9"]:
        """Coarse features of the body's parts (g of equation 2) that the base path starts from.

        Raises AssetError for a network without base path.
        """
        if self.config.variant != "hierarchical":
            raise AssetError(f"the {self.config.variant} network has no base path, hence no part features")
        parts = self.decoder.coarse(shape, self.decoder.pose_or_zero(shape, pose))
        return scaling(self.decoder.part_bounds).unscale(parts)

    def vertices(self, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"] | None = None) -> Float[Tensor, "B V 3"]:
        """Vertices of bodies of these codes, metres, the body frame of the reference, their mean in its mean."""
        points = self.codec.reconstruct(self.decode(shape, pose))
        return points - points.mean(1, keepdim=True) + self.reference.mean(0)


def _path_slope(path: CodePath, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]) -> Float[Tensor, "B N 9 C"]:
    """The derivative of a path's scaled features by both codes."""

    def hidden(codes: Float[Tensor, " C"]) -> Float[Tensor, " W"]:
        own, other = codes[None].split([shape.shape[1], pose.shape[1]], 1)
        return path.hidden(own, other)[0]

    return (path.output.weight @ vmap(jacfwd(hidden))(torch.cat([shape, pose], 1))).unflatten(1, (-1, FEATURE_DIMS))


SHIPPED = Path(__file__).parent / "weights" / "acap-vae.safetensors"
_KIND = "recon acap-vae"


def encoder_file(path: Path) -> Path:
    """Where the encoder that belongs to a decoder's file lies: beside it, as it is as large as the decoder."""
    return path.with_name(f"{path.stem}-encoder{path.suffix}")


def save_embedding(embedding: BodyEmbedding, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Decoder and template in `path`, the encoder, where there is one, in `encoder_file(path)`.

    dtype: of the learnt numbers; bounds and the reference are float32.
    """
    learnt = {name for name, _ in embedding.named_parameters()}
    mask = torch.zeros(embedding.config.parts, embedding.config.vertices, dtype=torch.bool)
    if embedding.config.variant == "hierarchical":
        mask[embedding.decoder.skinning.part.cpu(), embedding.decoder.skinning.vertex.cpu()] = True
    stored = {
        name: (value.to(dtype) if name in learnt else value).contiguous().cpu()
        for name, value in embedding.state_dict().items()
    } | {"mask": mask}
    metadata = {"kind": _KIND, "network": embedding.config.model_dump_json()}
    encoder = {name: value for name, value in stored.items() if name.startswith("encoder.")}
    save_file({name: value for name, value in stored.items() if name not in encoder}, path, metadata)
    if encoder:
        save_file(encoder, encoder_file(path), metadata)


def load_embedding(path: str | Path | None = None) -> BodyEmbedding:
    """The embedding of a file in evaluation mode, float32, on the CPU; by default the shipped one.

    The encoder is read where its file lies beside. Raises AssetError naming the file when it is not such a file.
    """
    path = Path(path or SHIPPED)
    try:
        config, tensors = _read(path)
        beside = encoder_file(path)
        if beside.exists():
            other, encoder = _read(beside)
            if other != config:
                raise AssetError(f"{beside}: encoder of another network than {path.name}; take both from one training")
            tensors |= encoder
        template = Template(
            **{name: tensors[name] for name in ("reference", "faces", "part", "source")}, mask=tensors.pop("mask")
        )
        embedding = BodyEmbedding(config, template, with_encoder=beside.exists())
        embedding.load_state_dict(tensors)
    except (OSError, SafetensorError, ValidationError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise AssetError(f"{path}: not weights of the body embedding ({reason}); reinstall recon-acap") from error
    return embedding.eval()


def _read(path: Path) -> tuple[EmbeddingConfig, dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        config = EmbeddingConfig.model_validate_json((file.metadata() or {}).get("network", ""))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return config, {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
