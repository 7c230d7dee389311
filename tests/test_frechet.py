"""The Fréchet distance is that of Gaussians whose distance is known, and says which features it was taken on."""

import sys
from types import ModuleType

import pytest
import torch

from recon_core.errors import UsageError
from recon_core.frechet import INCEPTION, frechet_distance, picture_features, squeezenet_features


def normal(count, dims, seed):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_moments(samples, mean, covariance):
    """The samples, moved and stretched to have exactly this mean and covariance."""
    white = samples - samples.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_gaussians_of_known_distance():
    # Covariances that commute: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2.
    turn = torch.linalg.qr(normal(6, 6, 0)).Q
    mean, first, second = normal(2, 6, 1), normal(1, 6, 2)[0].exp(), normal(1, 6, 3)[0].exp()
    sets = [
        of_moments(normal(400, 6, 4 + i), mean[i], turn @ torch.diag(v) @ turn.T) for i, v in enumerate((first, second))
    ]
    expected = (mean[0] - mean[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(*sets) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(400, 300), (5, 400), (4, 3)])
def test_any_covariances_agree_with_the_root_of_their_product(n, m):
    first, second = normal(n, 8, 0) @ normal(8, 8, 1), normal(m, 8, 2) @ normal(8, 8, 3) + 1
    C, D = torch.cov(first.T), torch.cov(second.T)
    root = torch.linalg.eigvals(C @ D).sqrt().real.sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + C.trace() + D.trace() - 2 * root
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-6)


def test_symmetric_zero_on_itself_and_unmoved_by_a_turn_of_the_features():
    first, second = normal(40, 12, 0), 2 * normal(30, 12, 1) + 0.5
    distance = frechet_distance(first, second)
    assert distance > 1
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(first, first.flip(0)) == pytest.approx(0, abs=1e-10)
    turn = torch.linalg.qr(normal(12, 12, 2)).Q
    assert frechet_distance(first @ turn + 3, second @ turn + 3) == pytest.approx(distance, rel=1e-10)


def test_sets_without_a_covariance_are_refused():
    with pytest.raises(UsageError, match="a set has 1 pictures; a covariance needs two"):
        frechet_distance(normal(5, 3, 0), normal(1, 3, 1))
    with pytest.raises(UsageError, match="3 features in one set, 4 in the other"):
        frechet_distance(normal(5, 3, 0), normal(5, 4, 1))
    with pytest.raises(UsageError, match="NaN"):
        frechet_distance(normal(5, 3, 0), normal(5, 3, 1) / 0)
    with pytest.raises(UsageError, match="frechet-squeezenet: no pictures"):
        squeezenet_features().of(torch.zeros(0, 3, 8, 8))


def test_pictures_of_one_kind_are_nearer_than_those_of_another():
    """Spots of one size, of the same size again, and of another size."""

    def spots(seed, size):
        noise = torch.rand(24, 3, size, size, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(noise, (96, 96))

    features = picture_features()
    assert features.metric == "frechet-squeezenet"
    alike, other = features.distance(spots(0, 24), spots(1, 24)), features.distance(spots(0, 24), spots(2, 8))
    assert 0 < 3 * alike < other


def test_inceptions_weights_make_it_fid(tmp_path, monkeypatch):
    """torch-fidelity stands in: its network is asked for the published features of 8-bit pictures."""
    (tmp_path / "checkpoints").mkdir()
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"fc.weight": weight}, tmp_path / "checkpoints" / INCEPTION)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert picture_features().metric == "frechet-squeezenet"  # the file alone is not enough

    class Network(torch.nn.Module):
        def __init__(self, name, features, path):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])
            self.weight = torch.load(path, weights_only=True)["fc.weight"]

        def forward(self, pictures):
            assert pictures.dtype == torch.uint8
            return (pictures.float().mean((2, 3)) @ self.weight.T,)

    stand_in = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    stand_in.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", stand_in)
    features = picture_features()
    assert features.metric == "fid"
    found = features.of(torch.full((3, 3, 4, 4), 2.0))
    torch.testing.assert_close(found, (255.0 * weight.sum(1)).expand(3, 2))
