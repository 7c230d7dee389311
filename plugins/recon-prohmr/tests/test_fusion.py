"""Several views of one person in one fit: equation 4.12, with and without the views' joints."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from recon_core.assets import assets
from recon_core.errors import EvidenceError
from recon_core.metrics import pa_mpjpe
from recon_core.structures import BodyParameters
from recon_prohmr.evaluation import views_of
from recon_prohmr.fitter import LatentFitter, LatentFitterConfig, rotation_average
from recon_prohmr.method import ProHMR, ProHMRConfig
from recon_std.bodies import load_body

PEOPLE, VIEWS = 3, 3


@pytest.fixture(scope="module")
def setting():
    """The shipped method, and upright people with bent limbs before three cameras each, seen with 1 % of noise."""
    body = load_body("free")
    method = ProHMR.from_assets(ProHMRConfig(), assets(), body)
    poses = torch.randn(12, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.15
    poses[:, 16, 2], poses[:, 17, 2] = -1.2, 1.2
    poses[:, 0] = 0
    seen, truth = views_of(body, poses, PEOPLE, VIEWS, noise=0.01)
    return body, method, seen, truth, method.predict(seen)


def fused(setting, rows=slice(None), subject=None, **settings):
    body, method, seen, _, prediction = setting
    some = dataclasses.replace(seen[rows], subject=seen.subject[rows] if subject is None else subject)
    fitter = LatentFitter(LatentFitterConfig(**settings))
    return fitter.fit(some, prediction.body[rows], body, {"prohmr": method.prior()}, prediction.context[rows])


def test_a_person_has_one_body_in_all_views(setting):
    _, _, _, _, prediction = setting
    fit = fused(setting)
    pose, betas = fit.body.pose.unflatten(0, (PEOPLE, VIEWS)), fit.body.betas.unflatten(0, (PEOPLE, VIEWS))
    torch.testing.assert_close(pose[:, :, 1:], pose[:, :1, 1:].expand(-1, VIEWS, -1, -1, -1), atol=0, rtol=0)
    torch.testing.assert_close(betas, betas[:, :1].expand(-1, VIEWS, -1), atol=0, rtol=0)
    assert (pose[:, 0, 0] - pose[:, 1, 0]).abs().amax((1, 2)).min() > 0.1
    rotations = pose.flatten(0, 2)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5, rtol=0)
    report = fit.report
    assert (report.energy < report.initial_energy).all()
    torch.testing.assert_close(sum(report.terms.values()), report.energy, rtol=1e-4, atol=1e-3)
    assert (report.energy.unflatten(0, (PEOPLE, VIEWS)).std(1) == 0).all()
    assert prediction.body.pose.shape == fit.body.pose.shape


def test_fusion_beats_averaging_beats_a_single_view(setting):
    body, _, _, truth, prediction = setting
    wanted = body.keypoints(truth, "lsp14")
    views = prediction.body.pose.unflatten(0, (PEOPLE, VIEWS))
    rest = rotation_average(views[:, :, 1:]).repeat_interleave(VIEWS, 0)
    mean = prediction.body.betas.unflatten(0, (PEOPLE, VIEWS)).mean(1).repeat_interleave(VIEWS, 0)
    average = BodyParameters(torch.cat([prediction.body.pose[:, :1], rest], 1), mean, prediction.body.translation)
    bodies = [prediction.body, average, fused(setting, evidence=False).body, fused(setting).body]
    found = [body.keypoints(b, "lsp14") for b in bodies]
    single, averaged, densities, joints = (float(pa_mpjpe(f, wanted).mean()) for f in found)
    assert joints < 0.7 * densities
    assert densities < single
    assert averaged < single


def test_views_agree_more_the_more_that_weighs(setting):
    left = [fused(setting, views_weight=weight, evidence=False).report.terms["views"] / weight for weight in (3, 3000)]
    assert (left[1] < 0.1 * left[0]).all()


def test_without_evidence_one_view_stays_the_mode(setting):
    """Equation 4.12 of a single view is the density alone."""
    _, _, _, _, prediction = setting
    fit = fused(setting, slice(0, 2), subject=torch.tensor([0, 1]), evidence=False)
    torch.testing.assert_close(fit.body.pose, prediction.body.pose[:2], atol=1e-4, rtol=0)
    torch.testing.assert_close(fit.body.translation, prediction.body.translation[:2])
    assert (fit.report.terms["pose prior"] < 1e-6).all()
    assert fit.report.reprojection_px.isnan().all()


def test_neither_the_order_of_views_nor_other_people_matter(setting):
    """In float64, as rounding in float32 may end a fit a step earlier."""
    body, method, seen, truth, _ = setting
    exact, seen = copy.deepcopy(method).double(), seen[: 2 * VIEWS].to(torch.float64)
    exact.body_model = copy.deepcopy(body).double()
    setting = (exact.body_model, exact, seen, truth, exact.predict(seen))
    brief = {"iterations": 4, "adapt": 0}
    whole = fused(setting, **brief)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    mixed = fused(setting, order, **brief)
    torch.testing.assert_close(mixed.report.energy, whole.report.energy[order], rtol=1e-6, atol=0)
    torch.testing.assert_close(mixed.body.pose, whole.body.pose[order], atol=1e-5, rtol=0)
    alone = fused(setting, slice(VIEWS, 2 * VIEWS), **brief)
    torch.testing.assert_close(alone.body.pose, whole.body.pose[VIEWS:], atol=1e-5, rtol=0)


def test_subjects_of_different_numbers_of_views_are_refused(setting):
    with pytest.raises(EvidenceError, match="subject 0 has 3 views and subject 1 has 2"):
        fused(setting, slice(0, 5))
