"""Every loss: 0 at its target, gradients that agree with finite differences, blind to targets of weight 0."""

from __future__ import annotations

import math

import pytest
import torch

from recon_core.errors import UsageError
from recon_core.interfaces import Loss
from recon_core.plugins import registry
from recon_core.structures import LossValue
from recon_std.losses.adversarial import gradient_penalty
from recon_std.losses.common import penalize, weighted_sum

B, J = 3, 14
# A tetrahedron with one corner cut into a fan: edges of several lengths, no symmetry.
FACES = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 4], [3, 2, 4], [2, 0, 4]])
VERTICES = torch.tensor([[0, 0, 0], [1, 0, 0], [0.2, 1.1, 0], [0.3, 0.2, 0.9], [-0.2, 0.5, 0.4]]).double()


@pytest.fixture(autouse=True)
def _double():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mesh_batch(seed: int) -> torch.Tensor:
    return VERTICES + 0.1 * random(B, 5, 3, seed=seed)


def confidence() -> torch.Tensor:
    value = torch.rand(B, J, generator=torch.Generator().manual_seed(5)) + 0.1
    value[:, 4] = 0
    return value


def keypoints(dims: int, **options) -> tuple:
    name = f"keypoints{dims}d"
    make = registry().create("loss", name, **({"skeleton": "lsp14"} if dims == 3 else {}), **options)
    target = {name: random(B, J, dims, seed=1), f"{name}_confidence": confidence()}
    return make, name, random(B, J, dims), target, f"{name}_confidence"


def fields(loss: str, name: str, shape: tuple[int, ...], **options) -> tuple:
    target = {name: random(*shape, seed=1)}
    return registry().create("loss", loss, **options), name, random(*shape), target, f"has_{name}"


def mesh(loss: str, **options) -> tuple:
    make = registry().create("loss", loss, faces=FACES, **options)
    return make, "vertices", mesh_batch(0), {"vertices": mesh_batch(1)}, "has_vertices"


def masks() -> tuple:
    made = torch.rand(B, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted = (torch.rand(B, 1, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    return registry().create("loss", "iou"), "mask", made, {"mask": wanted}, "has_mask"


CASES = {
    "keypoints2d l1": lambda: keypoints(2),
    "keypoints2d geman-mcclure": lambda: keypoints(2, penalty="geman-mcclure", sigma=0.7),
    "keypoints3d": lambda: keypoints(3, penalty="l2", reduction="mean"),
    "keypoints3d without root": lambda: keypoints(3, root=()),
    "vertices": lambda: fields("vertices", "vertices", (B, 7, 3)),
    "mesh-laplacian": lambda: mesh("mesh-laplacian", vertex_count=5, relative=True),
    "mesh-laplacian cotangent": lambda: mesh(
        "mesh-laplacian", vertex_count=5, laplacian="cotangent", reference=VERTICES, relative=True
    ),
    "edge-length": lambda: mesh("edge-length", relative=True),
    "iou": masks,
}


def values(loss: Loss, prediction: dict, target: dict) -> torch.Tensor:
    out = loss(prediction, target)
    assert isinstance(out, LossValue)
    assert out.per_sample.shape == (B,)
    assert all(term.shape == (B,) for term in out.terms.values())
    return out.per_sample


@pytest.mark.parametrize("case", CASES)
def test_zero_at_the_target(case):
    loss, name, _, target, _ = CASES[case]()
    assert values(loss, {name: target[name].clone()}, target).abs().max() < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_positive_off_the_target(case):
    loss, name, prediction, target, _ = CASES[case]()
    assert (values(loss, {name: prediction}, target) > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_gradient_agrees_with_finite_differences(case):
    loss, name, prediction, target, _ = CASES[case]()
    assert torch.autograd.gradcheck(
        lambda x: loss({name: x}, target).per_sample, prediction.requires_grad_(), atol=1e-7, rtol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_a_target_of_weight_zero_has_no_say(case):
    loss, name, prediction, target, weight = CASES[case]()
    rows = target.get(weight, torch.ones(B)).clone()
    rows[1] = 0
    prediction.requires_grad_()
    before = values(loss, {name: prediction}, target | {weight: rows})
    empty = target[name].clone()
    empty[1] = torch.nan
    after = values(loss, {name: prediction}, target | {weight: rows, name: empty})
    assert torch.equal(before, after)
    assert after[1] == 0
    assert after[0] != 0
    (gradient,) = torch.autograd.grad(after.sum(), prediction)
    assert gradient[1].abs().max() == 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("case", CASES)
def test_the_weight_scales_the_loss_and_not_its_terms(case):
    loss, name, prediction, target, _ = CASES[case]()
    once = loss({name: prediction}, target)
    loss.weight = 3.0
    thrice = loss({name: prediction}, target)
    torch.testing.assert_close(thrice.per_sample, 3 * once.per_sample)
    assert all(torch.equal(thrice.terms[term], value) for term, value in once.terms.items())


# -- keypoints


def test_keypoints3d_does_not_see_a_shift_with_a_root():
    loss, name, prediction, target, _ = keypoints(3)
    moved = {name: prediction + torch.tensor([1.0, 2, 3])}
    torch.testing.assert_close(values(loss, {name: prediction}, target), values(loss, moved, target))
    free, *_ = keypoints(3, root=())
    assert not torch.allclose(values(free, {name: prediction}, target), values(free, moved, target))


def test_a_missing_root_takes_the_sample_out():
    loss, name, prediction, target, weight = keypoints(3)
    target[weight][2, 3] = 0  # the left hip
    assert values(loss, {name: prediction}, target)[2] == 0


def test_an_unknown_root_joint_is_named():
    with pytest.raises(UsageError, match="left_hipp"):
        registry().create("loss", "keypoints3d", skeleton="lsp14", root=("left_hipp",))


def test_geman_mcclure_saturates():
    error = torch.tensor([0.01, 1e6])
    torch.testing.assert_close(penalize(error, "geman-mcclure", 2.0), torch.tensor([1e-4, 4.0]), rtol=1e-4, atol=0)


# -- body parameters


def test_body_parameters_terms_and_weights():
    loss = registry().create("loss", "body-parameters", pose_weight=2.0, betas_weight=0.5)
    prediction = {"pose": random(B, 24, 3, 3), "betas": random(B, 10)}
    target = {"pose": random(B, 24, 3, 3, seed=1), "betas": random(B, 10, seed=2)}
    out = loss(prediction, target)
    torch.testing.assert_close(out.terms["pose"], ((prediction["pose"] - target["pose"]) ** 2).sum((1, 2, 3)))
    torch.testing.assert_close(out.per_sample, 2 * out.terms["pose"] + 0.5 * out.terms["betas"])
    assert loss(target, target).per_sample.abs().max() == 0
    half = loss(prediction, target | {"has_pose": torch.tensor([1.0, 0, 1]), "has_betas": torch.zeros(B)})
    assert half.terms["betas"].abs().max() == 0
    torch.testing.assert_close(half.terms["pose"], out.terms["pose"] * torch.tensor([1.0, 0, 1]))


# -- meshes


def test_flatness_of_a_plane_and_of_a_fold():
    faces = torch.tensor([[0, 1, 2], [2, 1, 3]])
    flat = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]])
    folded = flat.clone()
    folded[0, 3] = torch.tensor([0.5, 0.5, 1 / math.sqrt(2)])
    loss = registry().create("loss", "flatness", faces=faces)
    assert float(loss({"vertices": flat}, {}).per_sample) == pytest.approx(0, abs=1e-12)
    assert float(loss({"vertices": folded}, {}).per_sample) == pytest.approx(1)  # a right angle: cos = 0
    assert torch.autograd.gradcheck(lambda v: loss({"vertices": v}, {}).per_sample, folded.requires_grad_())


def test_smoothing_forms_shrink_to_a_point():
    for name, options in (("mesh-laplacian", {"vertex_count": 5}), ("edge-length", {})):
        loss = registry().create("loss", name, faces=FACES, **options)
        assert (loss({"vertices": mesh_batch(0)}, {}).per_sample > 0).all()
        assert loss({"vertices": torch.ones(B, 5, 3)}, {}).per_sample.abs().max() < 1e-20


def test_an_edge_of_no_length_has_a_finite_gradient():
    loss = registry().create("loss", "edge-length", faces=FACES, relative=True)
    point = torch.zeros(1, 5, 3, requires_grad=True)
    loss({"vertices": point}, {"vertices": VERTICES[None]}).per_sample.sum().backward()
    assert torch.isfinite(point.grad).all()


def test_cotangent_needs_a_reference():
    with pytest.raises(UsageError, match="reference"):
        registry().create("loss", "mesh-laplacian", faces=FACES, vertex_count=5, laplacian="cotangent")


# -- masks


def test_iou_of_known_overlaps():
    first, second = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    first[0, :, :, :2] = 1
    second[0, :, :, 1:3] = 1  # 4 of 12 pixels in common; row 1: both empty
    out = registry().create("loss", "iou")({"mask": first}, {"mask": second}).per_sample
    torch.testing.assert_close(out, torch.tensor([2 / 3, 0.0]), atol=1e-6, rtol=0)


# -- adversarial


@pytest.mark.parametrize("game", ["lsgan", "wgan"])
def test_the_two_sides_pull_apart(game):
    generator = registry().create("loss", f"{game}-generator")
    discriminator = registry().create("loss", f"{game}-discriminator")
    scores = random(B, 25).requires_grad_()
    (for_generator,) = torch.autograd.grad(generator({"scores": scores}, {}).per_sample.sum(), scores)
    (for_critic,) = torch.autograd.grad(
        discriminator({"scores": scores}, {"scores": random(B, 25, seed=1)}).per_sample.sum(), scores
    )
    between = (scores > 0) & (scores < 1) if game == "lsgan" else torch.ones_like(scores, dtype=torch.bool)
    assert (for_generator[between] * for_critic[between] < 0).all()


def test_least_squares_targets():
    ones, zeros = torch.ones(B, 25), torch.zeros(B, 25)
    assert registry().create("loss", "lsgan-generator")({"scores": ones}, {}).per_sample.abs().max() == 0
    out = registry().create("loss", "lsgan-discriminator")({"scores": zeros}, {"scores": ones})
    assert out.per_sample.abs().max() == 0


def test_gradient_penalty_wants_slope_one():
    real, fake = random(B, 4), random(B, 4, seed=1)
    direction = torch.nn.functional.normalize(random(4), dim=0)
    assert gradient_penalty(lambda x: x @ direction, real, fake).per_sample.max() < 1e-20
    torch.testing.assert_close(
        gradient_penalty(lambda x: 3 * x @ direction, real, fake).per_sample, torch.full((B,), 4.0)
    )


# -- sums


def test_weighted_sum_keeps_terms_by_name():
    one = LossValue(torch.ones(2), {"a": torch.ones(2)})
    two = LossValue(2 * torch.ones(2), {"b": torch.ones(2), "c": torch.zeros(2)})
    total = weighted_sum({"one": one, "two": two}, {"two": 10.0})
    assert total.per_sample.tolist() == [21.0, 21.0]
    assert set(total.terms) == {"one", "two.b", "two.c"}
    with pytest.raises(UsageError, match="did you mean 'one'"):
        weighted_sum({"one": one}, {"onee": 1.0})


def test_mirror_symmetry_is_nothing_for_a_mesh_and_its_reflection():
    mirror = torch.tensor([1, 0, 2])
    vertices = torch.tensor([[[0.0, 1.0, 0.4], [0.0, 1.0, -0.4], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    loss = registry().load("loss", "mirror-symmetry")(mirror)
    assert loss({"vertices": vertices}, {}).per_sample == 0
    moved = vertices + torch.tensor([0.0, 0.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(loss({"vertices": moved}, {}).per_sample, torch.full((1,), 0.2, dtype=torch.float64))


def test_deformation_is_the_mean_length_and_has_a_gradient_at_rest():
    offsets = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    value = registry().load("loss", "deformation")()({"offsets": offsets}, {}).per_sample
    torch.testing.assert_close(value, torch.full((1,), 2.5, dtype=torch.float64), atol=1e-5, rtol=0)
    value.sum().backward()
    assert offsets.grad.isfinite().all()
