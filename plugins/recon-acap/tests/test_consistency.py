"""Axis-angle vectors that agree over a mesh: long chains, folds, pieces, and all choices on a small mesh."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recon_acap.features import AcapCodec, Connectivity
from recon_acap.features.consistency import TURN, Consistency
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle


def tube(rings: int = 40, sides: int = 8, radius: float = 0.01, length: float = 2.0) -> tuple[Tensor, Tensor]:
    """An open tube along x."""
    around = torch.arange(sides, dtype=torch.float64) * 2 * math.pi / sides
    along = torch.linspace(0, length, rings, dtype=torch.float64)
    x, a = torch.meshgrid(along, around, indexing="ij")
    vertices = torch.stack([x, radius * a.cos(), radius * a.sin()], -1).reshape(-1, 3)
    i, j = torch.meshgrid(torch.arange(rings - 1), torch.arange(sides), indexing="ij")
    a0, a1 = i * sides + j, i * sides + (j + 1) % sides
    faces = torch.stack([a0, a0 + sides, a1, a1, a0 + sides, a1 + sides], -1).reshape(-1, 3)
    return vertices, faces


def twisted(vertices: Tensor, degrees: float) -> Tensor:
    """Turned about x by 0 in the middle of the tube, and by half of `degrees` more or less at its ends."""
    angle = math.radians(degrees) * (vertices[:, 0] - 1) / 2
    return (axis_angle_to_matrix(angle[:, None] * torch.tensor([1.0, 0, 0]).double()) @ vertices[..., None])[..., 0]


def wrapped(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Angle in [0, pi] and axis of the rotations, without the turns."""
    plain = matrix_to_axis_angle(axis_angle_to_matrix(vectors))
    angle = plain.norm(dim=-1)
    return angle, torch.nn.functional.normalize(plain, dim=-1)


def energy(connectivity: Connectivity, vectors: Tensor) -> Tensor:
    one, two = connectivity.links.T
    return (vectors[:, one] - vectors[:, two]).square().sum(-1).sum(1)


@pytest.mark.parametrize("degrees", [100.0, 270.0, 540.0, 1080.0])
def test_long_chains_stay_consistent(degrees: float) -> None:
    """From end to end 270 degrees and more: the vectors grow evenly, and lie on x."""
    vertices, faces = tube()
    codec = AcapCodec(vertices, faces)
    features = codec.extract(twisted(vertices, degrees)[None])
    inner = slice(16, -16)
    off = (features[0, inner, 0] - math.radians(degrees) * (vertices[inner, 0] - 1) / 2).abs()
    # The tube's skin is sheared, so that its rotations lie beside x by a few degrees; close to whole turns that counts.
    assert off.quantile(0.9) < 0.2
    assert off.max() < 1
    assert features[0, inner, :3].norm(dim=-1).max() > 0.4 * math.radians(degrees)
    assert not codec.consistency.strained(features[..., :3]).any()


def test_smooth_fields_are_recovered_beyond_half_a_turn() -> None:
    vertices, faces = icosphere(2)
    connectivity = Connectivity(vertices.double(), faces)
    smooth = torch.stack([2.5 * vertices[:, 0], 4 + vertices[:, 1], 2 * vertices[:, 2]], -1).double()[None]
    root = connectivity.tree[0][0]
    got = Consistency(connectivity)(*wrapped(smooth))
    plain = matrix_to_axis_angle(axis_angle_to_matrix(smooth[:, root]))
    turns = ((smooth[:, root] - plain).norm() / TURN).round()
    assert turns == 1  # the root's own principal vector is another than the field's: a whole turn away from it
    assert energy(connectivity, got) < 1.5 * energy(connectivity, smooth)
    torch.testing.assert_close(axis_angle_to_matrix(got), axis_angle_to_matrix(smooth), rtol=0, atol=1e-9)


def test_undefined_axes_take_their_neighbours() -> None:
    """On a tube twisted by two turns there are rings whose rotation is none, at an angle of a whole turn."""
    vertices, faces = tube(rings=41)
    connectivity = Connectivity(vertices, faces)
    vectors = (vertices[:, 0] - 1)[:, None] * torch.tensor([4 * math.pi, 0, 0], dtype=torch.float64)
    angle, axis = wrapped(vectors[None])
    none = angle < 1e-6
    assert none.sum() == 5 * 8
    got = Consistency(connectivity)(torch.where(none, 0, angle), torch.where(none[..., None], 0, axis))
    torch.testing.assert_close(got[0], vectors, rtol=0, atol=1e-9)


def test_pieces_agree_where_they_touch() -> None:
    vertices, faces = tube()
    both = torch.cat([vertices, vertices * torch.tensor([1, 0.5, 0.5])])
    connectivity = Connectivity(both, torch.cat([faces, faces + len(vertices)]))
    assert connectivity.pieces == 2
    codec = AcapCodec(connectivity)
    features = codec.extract(twisted(both, 600.0)[None])[0]
    torch.testing.assert_close(features[: len(vertices), :3], features[len(vertices) :, :3], rtol=0, atol=1)


def test_nothing_better_exists_on_a_small_mesh() -> None:
    """Against every choice of turns on an octahedron, for rotations that differ by up to 100 degrees and more."""
    vertices = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    connectivity = Connectivity(vertices, faces)
    root = int(connectivity.tree[0][0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 6, 3, generator=generator, dtype=torch.float64)
    base = torch.tensor([0.0, 0.0, 2.6]).double()
    angle, axis = wrapped(base + 0.8 * noise)
    got = energy(connectivity, Consistency(connectivity)(angle, axis))
    turns = torch.tensor(list(itertools.product([-1, 0, 1], repeat=6))).double()
    turns = turns[turns[:, root] == 0]
    best = torch.stack([energy(connectivity, axis[k] * (angle[k] + TURN * turns)[..., None]).min() for k in range(60)])
    assert (got >= best - 1e-9).all()
    assert (got <= best + 1e-9).double().mean() > 0.9
    assert got.sum() < 1.03 * best.sum()


def test_a_patch_on_another_turn_is_brought_back() -> None:
    """A fold: a ring of vertices turned by half a turn more than those around it must not carry its turn inwards."""
    vertices, faces = icosphere(3)
    connectivity = Connectivity(vertices.double(), faces)
    smooth = torch.tensor([0.0, 0.0, 2.8]).double() + 0.2 * vertices.double()
    fold = (vertices[:, 0] > 0.3) & (vertices[:, 0] < 0.45) & (vertices[:, 1] > -0.5)
    folded = smooth + fold[:, None] * torch.tensor([0.0, 0.0, 2.9]).double()
    consistency = Consistency(connectivity)
    got = consistency(*wrapped(folded[None]))[0]
    sign = torch.sign(got[~fold][0] @ smooth[~fold][0])
    assert sign != 0
    inner = (got[~fold] - smooth[~fold]).norm(dim=-1)
    other = (got[~fold] - (smooth * (1 - TURN / smooth.norm(dim=-1, keepdim=True)))[~fold]).norm(dim=-1)
    assert min(inner.max(), other.max()) < 1e-9


def test_batches_of_calm_and_strained_meshes_are_done_alike() -> None:
    vertices, faces = icosphere(2)
    connectivity = Connectivity(vertices.double(), faces)
    generator = torch.Generator().manual_seed(1)
    rough = 3 * torch.randn(1, len(vertices), 3, generator=generator, dtype=torch.float64)
    calm = torch.tensor([1.0, 0.5, 0.0]).double() + 0.3 * vertices.double()[None]
    consistency = Consistency(connectivity)
    angle, axis = wrapped(torch.cat([calm, rough]))
    both = consistency(angle, axis)
    assert consistency.strained(both).sum(1).tolist()[0] == 0
    for k in range(2):
        torch.testing.assert_close(both[k : k + 1], consistency(angle[k : k + 1], axis[k : k + 1]))
    torch.testing.assert_close(axis_angle_to_matrix(both), axis_angle_to_matrix(torch.cat([calm, rough])))


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_on_any_turns_and_axes_are_joined(seed: int) -> None:
    """Slabs of a smooth field, each some turns away and about the opposite axis: all come to the root's turn."""
    vertices, faces = icosphere(3)
    connectivity = Connectivity(vertices.double(), faces)
    smooth = torch.tensor([0.0, 0.0, 2.5]).double() + 0.5 * vertices.double()
    length = smooth.norm(dim=-1)
    slab = ((vertices[:, 0] + 1.01) * 4).long()
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randint(-2, 3, (9,), generator=generator)[slab].double()
    sense = (torch.randint(0, 2, (9,), generator=generator) * 2 - 1)[slab].double()
    phase, axis = sense * (length + TURN * turns), sense[:, None] * smooth / length[:, None]
    tables = Consistency(connectivity)._on(torch.device("cpu"))
    got = tables.repaired(phase[:, None], axis[:, None])[:, 0]
    root = int(connectivity.tree[0][0])
    expected = smooth * (1 + TURN * turns[root] / length)[:, None]
    torch.testing.assert_close(got[:, None] * axis, expected, rtol=0, atol=1e-9)
