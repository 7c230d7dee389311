"""Mesh connectivity and its operators, on meshes whose answers are known."""

from __future__ import annotations

import torch

from recon_core.geometry import topology

TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
CORNERS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
# A fan: three faces on the one edge 0-1, as in a mesh that is no surface.
FAN = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4]])


def test_edges_and_adjacent_faces_of_a_tetrahedron():
    assert topology.edges(TETRAHEDRON).vertices.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    pairs = topology.adjacent_faces(TETRAHEDRON).sort(1).values
    assert sorted(pairs.tolist()) == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_an_edge_of_three_faces_is_no_manifold_and_gives_one_pair():
    shared = topology.edges(FAN)
    inner = (shared.faces[:, 1] >= 0).nonzero()[:, 0]
    assert shared.vertices[inner].tolist() == [[0, 1]]
    assert inner[0] in shared.irregular
    assert topology.adjacent_faces(FAN).tolist() == [[0, 1]]


def test_a_single_face_has_no_neighbour():
    assert topology.adjacent_faces(TETRAHEDRON[:1]).shape == (0, 2)


def test_normals_point_outwards_and_areas_sum():
    normals = topology.face_normals(CORNERS[None], TETRAHEDRON)[0]
    centres = CORNERS[TETRAHEDRON].mean(1) - CORNERS.mean(0)
    assert ((normals * centres).sum(-1) > 0).all()
    areas = topology.face_areas(CORNERS[None], TETRAHEDRON)
    torch.testing.assert_close(areas, torch.tensor([[0.5, 0.5, 3**0.5 / 2, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(topology.vertex_areas(CORNERS[None], TETRAHEDRON).sum(), areas.sum())


def test_a_face_without_area_has_normal_zero_and_weight_zero():
    flat = CORNERS.clone()
    flat[2] = torch.tensor([0.5, 0, 0])
    assert topology.face_normals(flat[None], TETRAHEDRON[:1]).abs().max() == 0
    assert topology.cotangent_weights(flat, TETRAHEDRON[:1])[1].abs().max() == 0


def test_uniform_laplacian_is_the_vertex_minus_its_neighbours_mean():
    operator = topology.uniform_laplacian(TETRAHEDRON, 5, torch.float64)  # vertex 4 is on no face
    points = torch.cat([CORNERS, torch.ones(1, 3, dtype=torch.float64)])
    out = topology.apply_sparse(operator, points[None])[0]
    torch.testing.assert_close(out[0], CORNERS[0] - CORNERS[1:].mean(0))
    assert out[4].abs().max() == 0


def test_cotangent_laplacian_of_a_square_and_its_kernel():
    """The square's diagonal faces two right angles: weight 0. Linear functions vanish at an inner vertex."""
    operator = topology.cotangent_laplacian(CORNERS, TETRAHEDRON).to_dense()
    torch.testing.assert_close(operator, operator.T)
    assert operator.sum(1).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(operator).min() > -1e-12
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.3, 0.6, 0]], dtype=torch.float64)
    around = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    inner = topology.apply_sparse(topology.cotangent_laplacian(square, around), square[None])[0, 4]
    assert inner.abs().max() < 1e-12
    two = topology.cotangent_laplacian(square[:4], torch.tensor([[0, 1, 2], [0, 2, 3]])).to_dense()
    assert two[0, 2].abs() < 1e-12


def test_apply_sparse_is_a_matrix_product_on_every_row():
    operator = topology.cotangent_laplacian(CORNERS, TETRAHEDRON)
    fields = torch.randn(3, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(topology.apply_sparse(operator, fields), operator.to_dense() @ fields)
