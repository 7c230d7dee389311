"""Fitters: closed-form points, gradients and curvatures against the skinned body and autograd, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import Prior
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Observation
from recon_std.bodies import load_body
from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.evidence import ScanPoints, geman_mcclure
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.kinematics import PointBasis, pose
from recon_std.fitters.levenberg_marquardt import solve_positive
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import ANGLES, Variables, Views
from recon_std.priors.gmm import GaussianMixturePrior

N, S = 3, 10
PLAIN = Noise(keypoints_outlier=None, keypoints3d_outlier=None, scan_outlier=None, scan_reach=10.0)


@pytest.fixture(scope="module")
def body():
    return load_body("free").double()


def random_variables(places: int = 1) -> Variables:
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    angles = 0.5 * draw(N, 23, 3)
    angles[0, 3] = 0
    angles[0, 4] *= 1e-4
    before = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    return Variables(angles, draw(N, S), axis_angle_to_matrix(draw(N, places, 3)), before + 0.3 * draw(N, places, 3))


def bodies(v: Variables) -> BodyParameters:
    return BodyParameters(torch.cat([v.root[:, :1], axis_angle_to_matrix(v.angles)], 1), v.betas, v.translation[:, 0])


def camera(views: int = 1, orthographic: bool = False) -> Camera:
    g = torch.Generator().manual_seed(2)
    K = torch.tensor([[700.0, 3.0, 320.0], [0.0, 720.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turn = axis_angle_to_matrix(0.2 * torch.randn(N * views, 3, generator=g, dtype=torch.float64))
    shift = 0.2 * torch.randn(N * views, 3, generator=g, dtype=torch.float64)
    return Camera(K.repeat(N * views, 1, 1), turn, shift, (640, 480), orthographic)


def observation(kind: str, body) -> Observation:
    g = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    seen = Observation(camera(orthographic=kind == "orthographic"))
    if kind in ("keypoints", "orthographic"):
        return dataclasses.replace(seen, keypoints=Keypoints(rand(N, 25, 2) * 500, rand(N, 25), "openpose25"))
    if kind == "keypoints3d":
        return dataclasses.replace(seen, keypoints3d=Keypoints(rand(N, 17, 3) + 4, rand(N, 17), "coco17"))
    if kind == "mesh":
        target = body(bodies(random_variables())).vertices + 0.1 * rand(N, body.vertex_count, 3)
        return dataclasses.replace(seen, mesh=Mesh(target, body.faces))
    points = body(bodies(random_variables())).vertices[:, ::100] + 0.05 * rand(N, 1, 3)
    return dataclasses.replace(seen, scan=points)


def objective_of(kind: str, body, noise: Noise = PLAIN) -> Objective:
    seen = observation(kind, body)
    views = Views.of(None, seen.camera, "auto")
    sampling = Sampling(mesh=40, scan=50, body=300)
    return Objective(gather(seen, body, views, S, noise, sampling))


def derivatives(function, columns: int) -> tuple[Tensor, Tensor]:
    """Gradient (N, P) and Hessian (N, P, P) of a sum over independent rows, by autograd."""
    zero = torch.zeros(N, columns, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(lambda s: function(s).sum(), zero)
    hessian = torch.autograd.functional.hessian(lambda s: function(s).sum(), zero)
    return gradient, torch.stack([hessian[n, :, n] for n in range(N)])


def near(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("skeleton", ["openpose25", "smpl24", "lsp14"])
def test_points_are_those_of_the_body(body, skeleton):
    v = random_variables()
    basis = PointBasis.of_skeleton(body, skeleton, S)
    points = v.points(basis.levers(pose(v.angles), v.betas)[:, 0], basis.mass, basis.root_joint(v.betas))
    near(points[:, 0].transpose(1, 2), body.keypoints(bodies(v), skeleton))
    near(basis.of_output(body, body(bodies(v))), body.keypoints(bodies(v), skeleton), 1e-6)


def test_vertices_are_those_of_the_body(body):
    v = random_variables()
    rows = torch.arange(0, body.vertex_count, 53)
    basis = PointBasis.of_vertices(body, rows, S)
    points = v.points(basis.levers(pose(v.angles), v.betas)[:, 0], basis.mass, basis.root_joint(v.betas))
    near(points[:, 0].transpose(1, 2), body(bodies(v)).vertices[:, rows])


@pytest.mark.parametrize("kind", ["keypoints", "orthographic", "keypoints3d", "mesh", "scan"])
@pytest.mark.parametrize("robust", [False, True])
def test_gradients_of_all_evidence(body, kind, robust):
    v = random_variables()
    objective = objective_of(kind, body, Noise(scan_reach=10.0, mesh_outlier=5.0) if robust else PLAIN).matched(v)
    got = objective.linearize(objective.evaluate(v), torch.zeros(N, dtype=torch.bool))
    zero = torch.zeros(N, v.columns, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda s: objective.evaluate(v.moved(s)).energy.sum(), zero)
    near(got.gradient, expected)
    held = objective.holding(v)
    near(held.linearize(held.evaluate(v), torch.zeros(N, dtype=torch.bool)).gradient, expected[:, v.places :])


@pytest.mark.parametrize("kind", ["keypoints", "keypoints3d", "scan"])
def test_curvature_is_gauss_newtons(body, kind):
    v = random_variables()
    objective = objective_of(kind, body).matched(v)
    got = objective.linearize(objective.evaluate(v), torch.zeros(N, dtype=torch.bool))

    def residuals(step: Tensor) -> Tensor:
        return torch.cat([m.residuals.value.sum(0).flatten() for m in objective.evaluate(v.moved(step)).measured])

    rows = torch.autograd.functional.jacobian(residuals, torch.zeros(N, v.columns, dtype=torch.float64))
    weight = torch.cat(
        [
            m.residuals.weight[:, :, None].expand_as(m.residuals.value).flatten(1)
            for m in objective.evaluate(v).measured
        ],
        1,
    )
    near(got.data, torch.einsum("mnp,nm,mnq->npq", rows, weight, rows))


def test_second_order_term_makes_the_curvature_exact(body):
    v = random_variables()
    objective = objective_of("keypoints3d", body)
    _, hessian = derivatives(lambda s: objective.evaluate(v.moved(s)).energy, v.columns)
    got = objective.linearize(objective.evaluate(v), torch.ones(N, dtype=torch.bool)).data
    plain = objective.linearize(objective.evaluate(v), torch.zeros(N, dtype=torch.bool)).data
    # All but what betas and turns do together, which the term leaves out.
    known = torch.ones(v.columns, dtype=torch.bool)
    known[ANGLES : v.places] = False
    exact = hessian[:, known][:, :, known]
    near(got[:, known][:, :, known], exact)
    assert (plain[:, known][:, :, known] - exact).abs().max() > 0.01 * exact.abs().max()


def test_each_view_without_a_common_frame_has_its_own_place(body):
    g = torch.Generator().manual_seed(4)
    joints = torch.rand(2 * N, 25, 2, generator=g, dtype=torch.float64) * 400
    subject = torch.arange(N).repeat(2)
    seen = Observation(camera(2), keypoints=Keypoints(joints, torch.ones(2 * N, 25).double(), "openpose25"))
    views = Views.of(subject, seen.camera, "uncalibrated")
    assert views.rows.tolist() == [[0, 3], [1, 4], [2, 5]]
    objective = Objective(gather(seen, body, views, S, PLAIN, Sampling()))
    v = random_variables(places=2)
    got = objective.linearize(objective.evaluate(v), torch.zeros(N, dtype=torch.bool)).gradient
    zero = torch.zeros(N, v.columns, dtype=torch.float64)
    near(got, torch.autograd.functional.jacobian(lambda s: objective.evaluate(v.moved(s)).energy.sum(), zero))


class Gaussian6D(Prior):
    """A normal density over the 144 numbers, about the context."""

    over = "pose-6d"
    dims = 144

    def log_prob(self, values, context=None):
        return -2 * (values - context).square().sum(-1)

    def sample(self, count, context=None, generator=None):
        noise = torch.randn(len(context), count, 144, generator=generator)
        return context[:, None] + 0.5 * noise.to(context)

    def mode(self, context=None):
        return context


class Curved6D(Gaussian6D):
    def quadratic(self, values, context=None):
        eye = 4 * torch.eye(144).to(values).expand(len(values), 144, 144)
        return -self.log_prob(values, context), 4 * (values - context), eye


@pytest.mark.parametrize("prior", [Gaussian6D(), Curved6D()])
@pytest.mark.parametrize("views_each", [1, 2])
def test_priors_over_all_rotations(prior, views_each):
    g = torch.Generator().manual_seed(5)
    v = random_variables(places=views_each)
    cameras = camera(views_each)
    views = Views.of(torch.arange(N).repeat(views_each), cameras, "uncalibrated")
    context = torch.randn(N * views_each, 144, generator=g, dtype=torch.float64)
    term = PriorTerm("p", prior, 0.7, views, cameras, context)
    energy, gradient, curvature = term.quadratic(v)
    zero = torch.zeros(N, v.columns, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda s: term.energy(v.moved(s)).sum(), zero)
    torch.testing.assert_close(energy, term.energy(v))
    near(gradient, expected)
    assert torch.linalg.eigvalsh(curvature).min() > -1e-6
    assert curvature.shape == (N, v.columns, v.columns)


def test_curvature_of_rotations_is_that_of_its_numbers():
    """Of 4 |x - c|^2 / 2 the Gauss-Newton curvature is 4 A^T A, A the Jacobian of the 6D numbers."""
    v = random_variables()
    cameras = camera()
    views = Views.of(None, cameras, "auto")
    context = torch.zeros(N, 144, dtype=torch.float64)
    term = PriorTerm("p", Curved6D(), 1.0, views, cameras, context)
    zero = torch.zeros(N, v.columns, dtype=torch.float64)
    A = torch.autograd.functional.jacobian(lambda s: term._values(v.moved(s)).sum(0), zero).permute(1, 0, 2)
    near(term.quadratic(v)[2], 4 * A.transpose(1, 2) @ A)


def test_generic_prior_has_the_curvature_of_its_draws():
    class Flat(GaussianMixturePrior):
        quadratic = Prior.quadratic

    v = random_variables()
    cameras = camera()
    views = Views.of(None, cameras, "auto")
    term = PriorTerm("flat", Flat().double(), 1.0, views, cameras, None)
    _, gradient, curvature = term.quadratic(v)
    zero = torch.zeros(N, v.columns, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda s: term.energy(v.moved(s)).sum(), zero)
    near(gradient, expected[:, :ANGLES])
    assert torch.linalg.eigvalsh(curvature[0]).min() > 0


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_geman_mcclure_weights_are_its_slope(scale):
    squared = torch.linspace(0, 50, 101, dtype=torch.float64, requires_grad=True)
    rho, weight = geman_mcclure(squared, scale)
    near(weight.detach(), torch.autograd.grad(rho.sum(), squared)[0])
    assert (rho <= scale**2).all()
    assert weight[0] == 1


def test_blocked_solve_agrees_and_tells_indefinite():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(5, 85, 85, generator=g, dtype=torch.float64)
    A = A @ A.transpose(1, 2) + torch.eye(85)
    b = torch.randn(5, 85, 1, generator=g, dtype=torch.float64)
    x, failed = solve_positive(A, b)
    near(x, torch.linalg.solve(A, b), 1e-7)
    assert not failed.any()
    A[2, 80, 80] = -1
    A[3, 1, 1] = -1
    assert (solve_positive(A, b)[1] != 0).tolist() == [False, False, True, True, False]


def test_scans_match_what_faces_the_same_way(body):
    v = random_variables()
    output = body(bodies(v))
    seen = Observation(camera(), scan=output.vertices[:, ::50])
    views = Views.of(None, seen.camera, "auto")
    (scan,) = gather(seen, body, views, S, PLAIN, Sampling(scan=0, body=0))
    assert isinstance(scan, ScanPoints)
    matched = scan.matched(pose(v.angles), v)
    assert matched.match is not None
    assert (matched.match == torch.arange(0, body.vertex_count, 50)).float().mean() > 0.99
    backwards = dataclasses.replace(matched, normals=-matched.plane.transpose(1, 2)).matched(pose(v.angles), v)
    assert (backwards.match == matched.match).float().mean() < 0.05
