"""Connectivity conversion: the embedding's mesh registered to a mesh of any other connectivity (section 6, eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import splu
from torch import Tensor

from recon_acap.features import Connectivity
from recon_acap.features.logarithm import to_affine
from recon_acap.fitting import LatentFit, LatentFitSettings, fit_meshes, fit_scans
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.fitting.nearest import nearest_on_mesh
from recon_core.errors import EvidenceError
from recon_core.rendering.shading import vertex_normals
from recon_core.structures import Landmarks

ICP, LANDMARK = 5.0, 1.0
"""lambda_1 and lambda_2 of equation 14. The codes' own pulls stand in the place of lambda_3, the sparsity of w."""

FACING = 0.5
"""Cosine between normals from which a vertex and the target's nearest point belong together."""

FREE_STEPS, ROUNDS = 4, 2
"""Correspondences sought between two fits of the codes, and how often the codes are fitted to the free vertices."""


@dataclass(frozen=True)
class Registration:
    """vertices: (V, 3), free vertices of the embedding's mesh on the target, metres, the target's frame. model: the
    embedding's own body nearest to it. matched: (V,) vertices that have a partner on the target at the end. distance:
    (V,) metres from each vertex to the target's surface."""

    vertices: Float[Tensor, "V 3"]
    model: LatentFit
    matched: Bool[Tensor, " V"]
    distance: Float[Tensor, " V"]


@torch.no_grad()
def register(
    bodies: EmbeddedBodies,
    target: Float[Tensor, "N 3"],
    target_faces: Int[Tensor, "F 3"],
    landmarks: Landmarks,
    settings: LatentFitSettings | None = None,
    reach: float = 0.05,
) -> Registration:
    """Equation 14 with the embedding as the prior, as the paper does for FAUST (section 8.1): alternately the free
    vertices p by a sparse linear solve, and the codes whose T(e_s, e_p) the prior draws their edges to.

    First the codes alone explain landmarks and target (`fit_scans`). target, reach: metres. Raises UsageError and
    EvidenceError as `fit_scans` does, and EvidenceError when nothing of the target is near enough to be matched.
    """
    s = settings or LatentFitSettings()
    normals = vertex_normals(target, target_faces)
    model = fit_scans(bodies, target[None], normals[None], landmarks, s)
    mesh = bodies.embedding.codec.connectivity
    laplacian = _laplacian(mesh)
    surface = target.double().numpy(), target_faces.numpy()
    seen = torch.ones(len(landmarks.vertices), dtype=torch.bool)
    if landmarks.confidence is not None:
        seen = landmarks.confidence[0] > 0
    known = landmarks.vertices[seen], landmarks.points[0, seen].double()
    points = model.vertices[0]
    soft = s.model_copy(update={"vertex_noise": 5e-3})
    for round_ in range(ROUNDS):
        affine = model.root[:, None] @ to_affine(bodies.features(model.shape, model.pose))
        wanted = _edge_sums(mesh, affine[0])
        for _ in range(FREE_STEPS):
            own = vertex_normals(points.float(), bodies.faces).double().numpy()
            found = nearest_on_mesh(points.numpy(), *surface, own)
            corner = surface[0][surface[1][found.face]]
            at = (found.barycentric[..., None] * corner).sum(1)
            plane = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
            plane /= np.maximum(np.linalg.norm(plane, axis=1, keepdims=True), 1e-30)
            matched = (found.distance < reach) & ((plane * own).sum(1) > FACING)
            if not matched.any():
                raise EvidenceError(
                    f"registration: no vertex comes within {reach:g} m of the target; check the landmarks"
                )
            points = _solve(laplacian, wanted, at, plane * matched[:, None], *known)
        if round_ + 1 < ROUNDS:
            model = fit_meshes(bodies, points[None], settings=soft)
    found = nearest_on_mesh(points.numpy(), *surface, exact=True)
    return Registration(points, model, torch.from_numpy(matched), torch.from_numpy(found.distance))


def _solve(
    laplacian: scipy.sparse.csc_matrix,
    wanted: Float[Tensor, "V 3"],
    at: Float[np.ndarray, "V 3"],
    plane: Float[np.ndarray, "V 3"],
    rows: Int[Tensor, " L"],
    places: Float[Tensor, "L 3"],
) -> Float[Tensor, "V 3"]:
    """The minimum over p of E_prior + lambda_1 E_icp + lambda_2 E_lan. plane: unit normals, 0 without a partner."""
    count = len(at)
    # The gradient of E_prior is 4 (L p - b), that of a squared distance twice it.
    planes = scipy.sparse.bsr_matrix((plane[:, :, None] * plane[:, None], np.arange(count), np.arange(count + 1)))
    pinned = np.zeros(count)
    pinned[rows.numpy()] = 2 * LANDMARK
    system = scipy.sparse.kron(4 * laplacian + scipy.sparse.diags(pinned), scipy.sparse.eye(3)) + 2 * ICP * planes
    right = 4 * wanted.numpy() + 2 * ICP * plane * (plane * at).sum(1, keepdims=True)
    right[rows.numpy()] += 2 * LANDMARK * places.numpy()
    return torch.from_numpy(splu(system.tocsc()).solve(right.reshape(-1)).reshape(-1, 3))


def _laplacian(mesh: Connectivity) -> scipy.sparse.csc_matrix:
    i, j = mesh.links.numpy().T
    w, count = mesh.link_weights.numpy(), mesh.vertex_count
    adjacency = scipy.sparse.coo_matrix((np.r_[w, w], (np.r_[i, j], np.r_[j, i])), (count, count)).tocsc()
    return scipy.sparse.diags(np.asarray(adjacency.sum(1))[:, 0]) - adjacency


def _edge_sums(mesh: Connectivity, affine: Float[Tensor, "V 3 3"]) -> Float[Tensor, "V 3"]:
    """b of equation 6 halved: sum over j of c_ij (T_i + T_j) (q_i - q_j) / 2."""
    i, j = mesh.links.T
    edge = (mesh.reference[i] - mesh.reference[j])[..., None]
    value = (mesh.link_weights[:, None, None] / 2 * ((affine[i] + affine[j]) @ edge))[..., 0]
    return torch.zeros_like(mesh.reference).index_add(0, i, value).index_add(0, j, -value)
