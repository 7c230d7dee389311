"""The method and its latent fit: on the shipped weights where they matter, on a small random network elsewhere."""

import copy
import dataclasses

import pytest
import torch
from pydantic import ValidationError

from recon_core.assets import assets
from recon_core.errors import AssetError, EvidenceError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rotation_6d_to_matrix
from recon_core.metrics import pa_mpjpe
from recon_core.structures import Camera, Keypoints, Observation
from recon_prohmr.evaluation import people_of
from recon_prohmr.fitter import LatentFitter, LatentFitterConfig
from recon_prohmr.latent import Latent, LatentObjective, turn_of_6d
from recon_prohmr.method import WEIGHTS, ProHMR, ProHMRConfig
from recon_prohmr.network import NetworkConfig, ProHMRNetwork, pose_from_6d
from recon_prohmr.prior import PosePrior
from recon_prohmr.sampling import quantise
from recon_prohmr.weights import load_network, save_network
from recon_std.bodies import load_body
from recon_std.priors.shape import ShapePrior


@pytest.fixture(scope="module")
def body():
    return load_body("free")


@pytest.fixture(scope="module")
def shipped(body):
    return ProHMR.from_assets(ProHMRConfig(samples=20), assets(), body)


@pytest.fixture(scope="module")
def people(body):
    """Twelve upright people with slightly bent limbs, seen with an error of 1 % of the box."""
    poses = torch.randn(12, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.15
    poses[:, 16, 2], poses[:, 17, 2] = -1.2, 1.2
    poses[:, 0] = 0
    return people_of(body, poses, 12, noise=0.01)


def small(body) -> ProHMR:
    torch.manual_seed(0)
    sizes = NetworkConfig(context=16, encoder_width=32, encoder_blocks=1, flow_width=32, head_width=16)
    return ProHMR(ProHMRConfig(samples=3), body, sizes).eval()


def test_the_shipped_weights_are_the_catalogues(shipped):
    path = assets().find(WEIGHTS)
    assert path.stat().st_size <= 20_000_000
    assert path.stat().st_size == assets().entry(WEIGHTS).size
    assert shipped.network.flow.dims == 144


def test_prediction_is_near_the_truth(shipped, body, people):
    seen, truth = people
    prediction = shipped.predict(seen)
    error = pa_mpjpe(body.keypoints(prediction.body, "lsp14"), body.keypoints(truth, "lsp14"))
    assert error.mean() < 70
    assert (prediction.body.translation - truth.translation).norm(dim=1).mean() < 0.2 * truth.translation.norm(
        dim=1
    ).mean()


def test_samples_agree_with_their_log_prob(shipped, people):
    seen, _ = people
    prediction = shipped.predict(seen)
    samples = prediction.samples
    assert samples.pose.shape == (12, 20, 24, 3, 3)
    mode = shipped.prior().mode(prediction.context)
    highest = shipped.prior().log_prob(mode, prediction.context)
    assert (samples.log_prob < highest[:, None]).all()
    eye = torch.eye(3).expand(12, 20, 24, 3, 3)
    torch.testing.assert_close(samples.pose @ samples.pose.mT, eye, atol=1e-4, rtol=0)
    # The mode is more like the draws than the draws are like each other.
    torch.testing.assert_close(pose_from_6d(mode), prediction.body.pose, atol=1e-4, rtol=0)


def test_seed_decides_the_samples(body, people):
    seen, _ = people
    method = small(body)
    first, again = method.predict(seen).samples, method.predict(seen).samples
    torch.testing.assert_close(first.pose, again.pose, rtol=0, atol=0)
    method.config = ProHMRConfig(samples=3, seed=1)
    assert not torch.allclose(method.predict(seen).samples.pose, first.pose)


def test_few_samples_that_stand_for_many(body, people):
    """`quantised_from`: each kept sample is a draw, and they lie nearer to the draws than as many first ones do."""
    seen, _ = people
    many, few = small(body), small(body)
    many.config = ProHMRConfig(samples=200)
    few.config = ProHMRConfig(samples=5, quantised_from=200)
    drawn, kept = (method.predict(seen[:3]).samples for method in (many, few))
    assert kept.pose.shape == (3, 5, 24, 3, 3)
    apart = (kept.pose[:, :, None] - drawn.pose[:, None]).abs().flatten(3).amax(-1)
    assert (apart.amin(2) < 1e-5).all()
    index = apart.argmin(2)
    torch.testing.assert_close(kept.log_prob, drawn.log_prob.gather(1, index))
    assert all(len(set(row)) == 5 for row in index.tolist())
    joints = [body.keypoints(s.flat(), "smpl24").unflatten(0, (3, -1)).flatten(2) for s in (drawn, kept)]
    far = [torch.cdist(joints[0], chosen).amin(2).mean() for chosen in (joints[1], joints[0][:, :5])]
    assert far[0] < 0.97 * far[1]
    for wrong in ({"quantised_from": 200}, {"samples": 9, "quantised_from": 8}):
        with pytest.raises(ValidationError, match="at least samples"):
            ProHMRConfig(**wrong)


def test_quantise_finds_the_clusters():
    """One point of each of four clusters of 40, 30, 20 and 10 points, in this order; every row by itself."""
    sizes = torch.tensor([40, 30, 20, 10])
    label = torch.arange(4).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    orders = [torch.randperm(100, generator=generator) for _ in range(3)]
    points = torch.stack([corners[label[o]] + 0.1 * torch.randn(100, 2, generator=generator) for o in orders])
    # Lloyd's finds the clusters where each has one of the first points.
    for row, order in enumerate(orders):
        first = [int((label[order] == k).nonzero()[0]) for k in range(4)]
        rest = [i for i in range(100) if i not in first]
        points[row], orders[row] = points[row][first + rest], order[first + rest]
    chosen = quantise(points, 4)
    assert [label[o][c].tolist() for o, c in zip(orders, chosen, strict=True)] == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(quantise(points[1:2], 4), chosen[1:2])
    assert quantise(points[:0], 4).shape == (0, 4)
    # More clusters than places: an empty one keeps its mean, and nothing fails.
    assert quantise(torch.zeros(1, 5, 2), 3).shape == (1, 3)


@pytest.mark.parametrize("row", [0, 7])
def test_one_of_many_is_one_alone(shipped, body, people, row):
    seen, _ = people
    many, one = shipped.predict(seen), shipped.predict(seen[row])
    torch.testing.assert_close(one.samples.pose, many.samples.pose[row : row + 1], atol=2e-4, rtol=0)
    for name in ("pose", "betas", "translation"):
        torch.testing.assert_close(
            getattr(one.body, name), getattr(many.body, name)[row : row + 1], atol=2e-4, rtol=1e-4
        )
    # In float64, as rounding in float32 may end one of the two fits a step earlier.
    exact, exact_body = copy.deepcopy(shipped).double(), copy.deepcopy(body).double()
    seen, prior = seen.to(torch.float64), {"prohmr": exact.prior()}
    many, one = exact.predict(seen), exact.predict(seen[row])
    fits = LatentFitter().fit(seen, many.body, exact_body, prior, many.context)
    fit = LatentFitter().fit(seen[row], one.body, exact_body, prior, one.context)
    torch.testing.assert_close(fit.report.energy, fits.report.energy[row : row + 1], atol=0, rtol=1e-6)
    torch.testing.assert_close(fit.body.pose, fits.body.pose[row : row + 1], atol=1e-5, rtol=0)


def test_empty_batch(body, people):
    seen, _ = people
    method = small(body)
    prediction = method.predict(seen[:0])
    assert prediction.body.pose.shape == (0, 24, 3, 3)
    assert prediction.samples.pose.shape == (0, 3, 24, 3, 3)
    fit = LatentFitter().fit(seen[:0], prediction.body, body, {"prohmr": method.prior()}, prediction.context)
    assert len(fit.body) == 0
    assert len(fit.report.energy) == 0


def test_the_picture_may_be_anywhere_of_any_size(shipped, body, people):
    """Scaling and shifting the pixels with the camera changes nothing."""
    seen, _ = people
    K = seen.camera.K * torch.tensor([3.0, 3.0, 1.0])[:, None]
    K[:, :2, 2] += torch.tensor([100.0, -50.0])
    camera = Camera(K, seen.camera.R, seen.camera.t, (3100, 3000))
    points = seen.keypoints.points * 3 + torch.tensor([100.0, -50.0])
    other = Observation(camera, keypoints=dataclasses.replace(seen.keypoints, points=points))
    for name in ("pose", "betas", "translation"):
        torch.testing.assert_close(
            getattr(shipped.predict(other).body, name), getattr(shipped.predict(seen).body, name), atol=2e-3, rtol=1e-3
        )


def test_missing_joints_widen_the_distribution(shipped, body, people):
    """Without the legs the body is still there, and its samples differ more where nothing was seen."""
    seen, truth = people
    confidence = seen.keypoints.confidence.clone()
    confidence[:, 23:] = 0
    half = dataclasses.replace(seen, keypoints=dataclasses.replace(seen.keypoints, confidence=confidence))

    def spread(observation):
        samples = shipped.predict(observation).samples
        joints = body.joints(samples.flat()).unflatten(0, (12, 20))
        return (joints - joints[:, :, :1]).std(1).norm(dim=-1).mean(0)

    ankles = [7, 8]
    assert (spread(half)[ankles] > 1.5 * spread(seen)[ankles]).all()
    upper = [16, 17, 18, 19, 20, 21]
    error = pa_mpjpe(body.joints(shipped.predict(half).body)[:, upper], body.joints(truth)[:, upper])
    assert error.mean() < 60


@pytest.mark.parametrize("skeleton", ["coco17", "openpose25", "lsp14"])
def test_other_detectors(shipped, body, people, skeleton):
    seen, truth = people
    points = seen.camera.project(body.keypoints(truth, skeleton))
    observation = dataclasses.replace(seen, keypoints=Keypoints(points, torch.ones_like(points[..., 0]), skeleton))
    prediction = shipped.predict(observation)
    fit = LatentFitter().fit(observation, prediction.body, body, {"prohmr": shipped.prior()}, prediction.context)
    joints = body.keypoints(truth, "lsp14")
    assert pa_mpjpe(body.keypoints(fit.body, "lsp14"), joints).median() < 70


def test_fit_pulls_the_body_onto_the_joints(shipped, body, people):
    seen, truth = people
    prediction = shipped.predict(seen)
    fit = LatentFitter().fit(seen, prediction.body, body, {"prohmr": shipped.prior()}, prediction.context)

    def off(found):
        return (seen.camera.project(body.keypoints(found, "blazepose33")) - seen.keypoints.points).norm(dim=-1).mean(1)

    before, after = off(prediction.body), off(fit.body)
    assert (after < before).all()
    assert after.mean() < 0.6 * before.mean()
    torch.testing.assert_close(fit.report.reprojection_px, after, rtol=1e-3, atol=1e-2)
    assert (fit.report.energy < fit.report.initial_energy).all()
    assert fit.report.converged.float().mean() > 0.7
    torch.testing.assert_close(sum(fit.report.terms.values()), fit.report.energy, rtol=1e-4, atol=1e-3)
    joints = body.keypoints(truth, "lsp14")
    error = [pa_mpjpe(body.keypoints(b, "lsp14"), joints).mean() for b in (prediction.body, fit.body)]
    assert error[1] < error[0]


def test_the_fit_finds_the_noise(shipped, body, people):
    """A detector that errs little is followed more closely than one that errs much, in units of its error."""
    _, truth = people
    left = []
    for noise in (0.004, 0.03):
        poses = matrix_to_axis_angle(truth.pose)
        poses[:, 0] = 0
        seen, _ = people_of(body, poses, 12, noise=noise)
        prediction = shipped.predict(seen)
        fit = LatentFitter().fit(seen, prediction.body, body, {"prohmr": shipped.prior()}, prediction.context)
        once = LatentFitter(LatentFitterConfig(adapt=0)).fit(
            seen, prediction.body, body, {"prohmr": shipped.prior()}, prediction.context
        )
        left.append((fit.report.reprojection_px / once.report.reprojection_px).mean())
    assert left[0] < 1 < left[1]


def test_a_wild_joint_does_not_drag_the_fit(shipped, body, people):
    seen, _ = people
    points = seen.keypoints.points.clone()
    points[:, 15] += 400
    wild = dataclasses.replace(seen, keypoints=dataclasses.replace(seen.keypoints, points=points))
    prediction = shipped.predict(wild)
    fit = LatentFitter().fit(wild, prediction.body, body, {"prohmr": shipped.prior()}, prediction.context)
    others = [i for i in range(33) if i not in (15, 17, 19, 21)]
    off = seen.camera.project(body.keypoints(fit.body, "blazepose33")) - seen.keypoints.points
    assert off[:, others].norm(dim=-1).mean() < 0.05 * seen.box[:, 2:].amax(-1).mean()


@pytest.mark.parametrize("count", [1, 2])
def test_latent_energy_has_the_gradient_of_its_model(shipped, body, people, count):
    """The chain rule through 6D numbers and flow, and the views' bond, against finite differences in float64."""
    from recon_std.fitters.gather import Noise, Sampling, gather
    from recon_std.fitters.objective import Objective
    from recon_std.fitters.variables import Views

    seen, _ = people
    double = copy.deepcopy(body).double()
    method = copy.deepcopy(shipped).double()
    method.body_model = double
    some = seen[:4].to(torch.float64)
    prediction = method.predict(some)
    evidence = gather(some, double, Views(torch.arange(4)[:, None], True), 10, Noise(), Sampling())
    objective = LatentObjective(Objective(evidence), method.prior(), prediction.context, LatentFitterConfig(), count)
    generator = torch.Generator().manual_seed(0)
    z = 0.3 * torch.randn(4 // count, count, 144, generator=generator, dtype=torch.float64)
    place = prediction.body.translation.unflatten(0, (-1, count))
    at = Latent(z, place, prediction.body.betas[: 4 // count])
    with torch.no_grad():
        gradient = objective.linearize(objective.evaluate(at), torch.zeros(4 // count).bool()).gradient
        directions = torch.randn(6, *gradient.shape, generator=generator, dtype=torch.float64)
        for direction in directions:
            ahead, behind = (objective.evaluate(at.moved(s * 1e-6 * direction)).energy for s in (1, -1))
            torch.testing.assert_close((ahead - behind) / 2e-6, (gradient * direction).sum(1), rtol=1e-4, atol=1e-4)


def test_turn_of_6d_is_autograds():
    x = torch.randn(4, 6, dtype=torch.float64)
    for values in x:
        jacobian = torch.autograd.functional.jacobian(rotation_6d_to_matrix, values)
        omega = torch.einsum("ijk,lj->ilk", jacobian, rotation_6d_to_matrix(values))
        turn = torch.stack([omega[2, 1], omega[0, 2], omega[1, 0]])
        torch.testing.assert_close(turn_of_6d(values), turn)


def test_prior_stands_in_the_camera_frame(body):
    """Same density as the flow's in the view's frame, whatever the view's rotation; its quadratic is its energy's."""
    prior = PosePrior(small(body).network.flow.double())
    generator = torch.Generator().manual_seed(1)
    rotation = axis_angle_to_matrix(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    context = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    packed = PosePrior.packed(context, rotation)
    z = torch.randn(3, 1, 144, generator=generator, dtype=torch.float64)
    values = prior.decode(z, packed)
    torch.testing.assert_close(prior.encode(values, packed), z)
    torch.testing.assert_close(prior.log_prob(values[:, 0], packed), prior.flow.latent_log_prob(z, context)[:, 0])
    root = rotation_6d_to_matrix(values[:, 0, :6])
    inner = rotation_6d_to_matrix(prior.flow.decode(z, context)[:, 0, :6])
    torch.testing.assert_close(rotation @ root, inner)
    energy, gradient, curvature = prior.quadratic(values[:, 0], packed)
    torch.testing.assert_close(energy, 0.5 * z[:, 0].square().sum(1))
    x = values[:, 0].detach().requires_grad_()
    (exact,) = torch.autograd.grad((-prior.log_prob(x, packed)).sum(), x)
    torch.testing.assert_close(gradient, exact)
    assert (torch.linalg.eigvalsh(curvature) > 0).all()


def test_too_few_joints(body, people):
    seen, _ = people
    method = small(body)
    confidence = seen.keypoints.confidence.clone()
    confidence[2, 3:] = 0
    poor = dataclasses.replace(seen, keypoints=dataclasses.replace(seen.keypoints, confidence=confidence))
    with pytest.raises(EvidenceError, match="subject 2"):
        method.predict(poor)
    prediction = method.predict(seen)
    with pytest.raises(EvidenceError, match="3 joints"):
        LatentFitter().fit(poor, prediction.body, body, {"prohmr": method.prior()}, prediction.context)


def test_what_the_fitter_cannot_use(body, people):
    seen, _ = people
    method = small(body)
    prediction = method.predict(seen)
    with pytest.raises(UsageError, match="latent space of prohmr"):
        LatentFitter().fit(seen, prediction.body, body, {}, prediction.context)
    priors = {"prohmr": method.prior(), "shape": ShapePrior()}
    with pytest.raises(UsageError, match="takes no 'shape'"):
        LatentFitter().fit(seen, prediction.body, body, priors, prediction.context)
    with pytest.raises(UsageError, match="context"):
        method.prior().mode()


def test_weights_come_back(body, tmp_path):
    network = small(body).network
    path = tmp_path / "weights.safetensors"
    save_network(network, path)
    back = load_network(path, ProHMRNetwork)
    assert back.config == network.config
    for name, value in network.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not weights"):
        path.write_bytes(damaged)
        with pytest.raises(AssetError, match=r"weights\.safetensors"):
            load_network(path, ProHMRNetwork)
