"""Uses of an embedding: command line, registration, prior, transfer and interpolation.

The embedding is untrained, on the small post of `standin`: every part of the way is the real one but for what a
training would have put into the numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from recon_acap import uses
from recon_acap.fitting import LatentFitSettings, fit_meshes
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.fitting.generator import forward_jacobian
from recon_acap.fitting.nearest import nearest_on_mesh
from recon_acap.network import BodyEmbedding, EmbeddingConfig, Template, load_embedding, save_embedding
from recon_acap.prior import COLUMNS, AcapPosePrior
from recon_acap.registration import register
from recon_core.cli import main
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import SMPL24
from recon_core.structures import BodyParameters, Landmarks
from recon_std.bodies import load_body

sys.path.insert(0, str(Path(__file__).parent))
from standin import Post

MARKERS = torch.arange(0, 96, 5)


def _embedding() -> BodyEmbedding:
    post = Post(rings=12, spokes=8)
    torch.manual_seed(0)
    part = (torch.arange(len(post.rest)) * 16 // len(post.rest)).clamp(max=15)
    template = Template(
        post.rest.float(), post.faces, part, torch.ones(16, len(post.rest), dtype=torch.bool), torch.full_like(part, -1)
    )
    config = EmbeddingConfig(vertices=len(post.rest), shape_dims=3, pose_dims=4, hidden=8, width=16)
    embedding = BodyEmbedding(config, template, with_encoder=False)
    # Turns of up to a half radian and stretches of up to a tenth.
    middle = torch.tensor([0.0, 0, 0, 1, 0, 0, 1, 0, 1])
    reach = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    bounds = torch.stack([middle + reach, middle - reach])
    embedding.decoder.bounds.copy_(bounds.repeat(1, len(post.rest)))
    embedding.decoder.part_bounds.copy_(bounds.repeat(1, 16))
    for name in ("coarse", "difference"):
        path = getattr(embedding.decoder, name)
        with torch.no_grad():
            # Neighbours alike, as features of a body are.
            path.output.weight.copy_(
                path.output.weight.unflatten(0, (-1, 9))[:1].repeat(len(path.output.weight) // 9, 1, 1).flatten(0, 1)
                * 4
            )
            path.output.bias.zero_()
    return embedding.eval()


EMBEDDING = _embedding()
BODIES = EmbeddedBodies(EMBEDDING)


def _codes(count: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda width: torch.randn(count, width, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(3), draw(4)


@torch.no_grad()
def _body(seed: int = 1) -> Tensor:
    return BODIES.vertices(*_codes(seed=seed))[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_embedding(EMBEDDING, path, torch.float32)
    return path


Fit = Callable[..., tuple[int, str]]


@pytest.fixture
def fit(weights: Path, capfd: pytest.CaptureFixture[str]) -> Fit:
    """Runs the command line; its exit code, and what it said."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["fit", "--method", "acap-vae", "--set", f"acap-vae.weights={weights}", *arguments])
        return code, "".join(capfd.readouterr())

    return run


def test_derivative_of_the_vertices() -> None:
    """The closed form behind the decoder is what a difference quotient gives."""
    shape, pose = _codes(2)
    double = EmbeddedBodies(_embedding().double())
    vertices, slope = double.linearized(shape, pose)
    torch.testing.assert_close(vertices, double.vertices(shape, pose))
    g = torch.Generator().manual_seed(2)
    way = torch.randn(2, 7, generator=g, dtype=torch.float64)
    ahead, back = (double.vertices(shape + h * way[:, :3], pose + h * way[:, 3:]) for h in (1e-5, -1e-5))
    torch.testing.assert_close((ahead - back) / 2e-5, (slope @ way[:, None, :, None])[..., 0], rtol=1e-5, atol=1e-7)


def test_a_mesh_of_the_embedding_is_found() -> None:
    body = _body()
    found = fit_meshes(BODIES, body[None])
    assert (found.vertices[0] - body).norm(dim=-1).max() < 1e-4


def test_command_line_fits_a_scan_in_millimetres(fit: Fit, tmp_path: Path) -> None:
    body = _body()
    mesh = trimesh.Trimesh(body.numpy() * 1000, EMBEDDING.faces.numpy(), process=False)
    points, _ = trimesh.sample.sample_surface(mesh, 1500, seed=0)
    trimesh.PointCloud(points).export(tmp_path / "scan.ply")
    pairs = [[int(i), (1000 * body[i]).tolist()] for i in MARKERS]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    arguments = [str(tmp_path / "scan.ply"), "--landmarks", str(tmp_path / "pairs.json"), "-o", str(tmp_path / "out")]
    code, said = fit(*arguments)
    assert code == 0, said
    assert "in millimetres" in said
    written = trimesh.load(tmp_path / "out" / "scan" / "object_0.ply", process=False)
    assert torch.from_numpy(written.vertices - body.numpy()).norm(dim=-1).mean() < 2e-3
    result = json.loads((tmp_path / "out" / "scan" / "result.json").read_text())
    assert len(result["objects"][0]["extra"]["shape"]) == 3
    assert {"result.npz", "scene.glb", "object_0.obj"} <= {p.name for p in (tmp_path / "out" / "scan").iterdir()}
    code, said = fit(*arguments)
    assert code == 1
    assert "overwrite" in said


def test_command_line_takes_a_mesh_vertex_by_vertex_and_markers_alone(fit: Fit, tmp_path: Path) -> None:
    body = _body()
    trimesh.Trimesh(body.numpy(), EMBEDDING.faces.numpy(), process=False).export(tmp_path / "mesh.ply")
    pairs = [[int(i), body[i].tolist()] for i in MARKERS]
    (tmp_path / "markers.json").write_text(json.dumps(pairs))
    for arguments, limit in (
        ([str(tmp_path / "mesh.ply")], 1e-3),
        (["--landmarks", str(tmp_path / "markers.json")], 0.02),
    ):
        code, said = fit(*arguments, "-o", str(tmp_path / "out"))
        assert code == 0, said
        name = Path(arguments[-1]).stem
        written = trimesh.load(tmp_path / "out" / name / "object_0.ply", process=False)
        assert torch.from_numpy(written.vertices - body.numpy()).norm(dim=-1).mean() < limit


def _finer(body: Tensor) -> trimesh.Trimesh:
    return trimesh.Trimesh(body.numpy(), EMBEDDING.faces.numpy(), process=False).subdivide()


def test_registration_reaches_what_the_model_cannot(fit: Fit, tmp_path: Path) -> None:
    """A finer mesh of a body that is no code's: free vertices come nearer than the model's own body."""
    body = _body()
    grown = body * (1 + 0.03 * torch.sin(6 * body[:, 1:2]))
    target = _finer(grown)
    landmarks = Landmarks(MARKERS, grown[MARKERS][None].float())
    faces = torch.from_numpy(target.faces.copy())
    found = register(BODIES, torch.from_numpy(target.vertices.copy()).float(), faces, landmarks)
    model = nearest_on_mesh(found.model.vertices[0].numpy(), target.vertices, target.faces).distance
    assert found.distance.median() < 0.6 * np.median(model)
    apart = (found.vertices - grown).norm(dim=-1).mean()
    assert apart < (found.model.vertices[0] - grown).norm(dim=-1).mean()
    target.export(tmp_path / "target.ply")
    (tmp_path / "pairs.json").write_text(json.dumps([[int(i), int(i)] for i in MARKERS]))
    pairs = ["--landmarks", str(tmp_path / "pairs.json")]
    code, said = fit("--register", str(tmp_path / "target.ply"), *pairs, "-o", str(tmp_path / "out"))
    assert code == 0, said
    written = trimesh.load(tmp_path / "out" / "target" / "object_0.ply", process=False)
    assert len(written.vertices) == len(body)
    assert torch.from_numpy(written.vertices - found.vertices.numpy()).abs().max() < 1e-4


def test_bad_calls_say_what_is_wrong(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = _body()
    finer = _finer(body)
    finer.export(tmp_path / "other.ply")
    code, said = fit(str(tmp_path / "other.ply"), "--as", "mesh")
    assert code == 1
    assert f"{len(finer.vertices)} vertices and the model {len(body)}" in said
    for pairs, wrong in (
        ([[0, 10**6]], f"pair 0 names vertex {10**6} of the target"),
        ([[0, 1], ["a", 2]], "pair 1 is not"),
        ([[len(body), 1], [1, 2], [2, 3]], f"vertex {len(body)} is out of range"),
        ({}, "give a list of pairs"),
    ):
        (tmp_path / "pairs.json").write_text(json.dumps(pairs))
        code, said = fit(str(tmp_path / "other.ply"), "--landmarks", str(tmp_path / "pairs.json"))
        assert code in (1, 2)
        assert wrong in said
    trimesh.PointCloud(finer.vertices * 5).export(tmp_path / "huge.ply")
    code, said = fit(str(tmp_path / "huge.ply"))
    assert code == 1
    assert "no body's in metres" in said
    broken = finer.vertices.copy()
    broken[3] = float("nan")
    trimesh.PointCloud(broken).export(tmp_path / "nan.ply")
    code, said = fit(str(tmp_path / "nan.ply"))
    assert code == 1
    assert "vertex 3 is not finite" in said
    code, said = fit()
    assert code == 2
    assert "give a FILE" in said
    assert not list(tmp_path.glob("out*"))


def test_transfer_and_interpolation() -> None:
    (s0, p0), (s1, p1) = ([c.float() for c in _codes(2, seed)] for seed in (1, 2))
    with torch.no_grad():
        transferred = uses.pose_transfer(EMBEDDING, s0, p1)
        line = uses.interpolate(EMBEDDING, (s0, p0), (s1, p1), torch.tensor([0.0, 0.5, 1.0]))
        grid = uses.interpolate_bilinear(
            EMBEDDING, (s0, p0), (s1, p1), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
        )
        torch.testing.assert_close(line[:, 0], EMBEDDING.vertices(s0, p0), rtol=0, atol=1e-5)
        torch.testing.assert_close(line[:, 2], EMBEDDING.vertices(s1, p1), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[:, 0, 1], transferred, rtol=0, atol=1e-5)
    torch.testing.assert_close(grid[:, 1, 1], line[:, 2], rtol=0, atol=1e-5)
    shape, pose = uses.sample_people(EMBEDDING, 5, torch.Generator().manual_seed(0), pose_scale=0.0)
    assert shape.shape == (5, 3)
    assert not pose.any()


def test_prior_is_a_density_over_angles() -> None:
    prior = AcapPosePrior(_embedding().double(), sigma=0.1, steps=12)
    assert prior.dims == 69
    values = prior.sample(6, generator=torch.Generator().manual_seed(0))[0]
    energy, gradient, curvature = prior.quadratic(values)
    assert (torch.linalg.eigvalsh(curvature) > 0).all()
    # With z* and A held the energy is exactly quadratic, and z* is stationary: a difference quotient agrees nearly.
    g = torch.Generator().manual_seed(1)
    way = torch.randn(values.shape, generator=g, dtype=torch.float64)
    ahead, back = (prior.quadratic(values + h * way)[0] for h in (1e-4, -1e-4))
    expected = (gradient * way).sum(1)
    torch.testing.assert_close((ahead - back) / 2e-4, expected, rtol=0.1, atol=float(expected.abs().max()) * 0.1)
    assert (prior.log_prob(prior.mode()) > prior.log_prob(values)).all()
    assert (prior.quadratic(prior.mode())[0] < energy).all()
    far = values + 2.0
    assert (prior.log_prob(far) < prior.log_prob(values)).all()


def test_prior_is_exact_where_the_embedding_is_linear() -> None:
    """Of angles that follow the code linearly, log_prob is the normal density N(0, A A^T + sigma^2 I)."""
    prior = AcapPosePrior(_embedding().double(), sigma=0.1, steps=4)
    A = 0.3 * torch.randn(45, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior.angles = lambda code: code @ A.T  # type: ignore[method-assign]
    values = prior.sample(5, generator=torch.Generator().manual_seed(0))[0]
    covariance = 0.2**2 * torch.eye(69, dtype=torch.float64)
    columns = torch.tensor(COLUMNS)
    covariance[columns[:, None], columns] = A @ A.T + 0.1**2 * torch.eye(45)
    expected = torch.distributions.MultivariateNormal(torch.zeros(69, dtype=torch.float64), covariance)
    torch.testing.assert_close(prior.log_prob(values), expected.log_prob(values))
    slope = forward_jacobian(lambda code, _: code @ A.T, values[:, :4], values[:, :0])[1]
    torch.testing.assert_close(slope[0], A)


def test_the_encoder_is_where_a_posed_mesh_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = EmbeddedBodies(load_embedding())
    angles = torch.zeros(1, 24, 3)
    angles[0, SMPL24.index("left_shoulder"), 2], angles[0, SMPL24.index("right_shoulder"), 2] = -1.2, 1.1
    angles[0, SMPL24.index("left_knee"), 0], angles[0, SMPL24.index("right_hip"), 0] = 0.8, -0.6
    person = BodyParameters(axis_angle_to_matrix(angles), torch.ones(1, 10), torch.zeros(1, 3))
    turn = axis_angle_to_matrix(torch.tensor([0.3, 1.0, -0.2]))
    target = load_body("free")(person).vertices[:, bodies.embedding.source] @ turn.T + torch.tensor([0.0, 1.0, 3.0])
    settings = LatentFitSettings(iterations=2)

    def distance() -> float:
        return float((fit_meshes(bodies, target, settings=settings).vertices - target).norm(dim=-1).mean())

    known = distance()
    monkeypatch.setattr(bodies, "encoded", lambda vertices: None)
    assert known < 0.03
    assert known < 0.5 * distance()
