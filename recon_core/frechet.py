"""Fréchet distance between two sets of pictures: how far what is made lies from what is real, as a whole.

The distance is that of two Gaussians fitted to the features of either set (Heusel et al., "GANs Trained by a Two
Time-Scale Update Rule", NeurIPS 2017, equation 6). Its name says which features: "fid" is of the Inception network
that every published FID has; "frechet-squeezenet" of SqueezeNet, which ships with recon-std. Values of one name must
not be compared with values of the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from recon_core.errors import UsageError

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file, where it keeps it: the folder `checkpoints` of `torch.hub.get_dir()`."""

SIDE = 224
"""Pixels a side of the pictures that SqueezeNet sees, as in its training."""


@dataclass(frozen=True)
class PictureFeatures:
    """A network whose features are compared. metric: the name of the distance. extract: (B, 3, H, W), RGB in [0, 1],
    to (B, D)."""

    metric: str
    extract: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B D"]]

    @torch.no_grad()
    def of(self, pictures: Float[Tensor, "N 3 H W"], batch_size: int = 32) -> Float[Tensor, "N D"]:
        """Features of any number of pictures, `batch_size` at a time, on the CPU. Raises UsageError for none."""
        if not len(pictures):
            raise UsageError(f"{self.metric}: no pictures given")
        return torch.cat([self.extract(part).cpu() for part in pictures.split(batch_size)])

    def distance(self, first: Float[Tensor, "N 3 H W"], second: Float[Tensor, "M 3 h w"]) -> float:
        """`frechet_distance` of two sets of pictures."""
        return frechet_distance(self.of(first), self.of(second))


def picture_features() -> PictureFeatures:
    """Inception's ("fid") where torch-fidelity and its weights are here, else SqueezeNet's ("frechet-squeezenet").

    Raises UsageError where neither is installed.
    """
    if (inception := _inception()) is not None:
        return inception
    return squeezenet_features()


def squeezenet_features() -> PictureFeatures:
    """512 features: the mean over the picture of the last layer before the classifier of SqueezeNet 1.1, by the
    encoder "squeezenet". Pictures are brought to `SIDE` pixels. Raises UsageError where recon-std is not installed."""
    from recon_core.plugins import registry
    from recon_core.structures import Camera, Observation

    encoder = registry().create("encoder", "squeezenet").eval()

    def extract(pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 512"]:
        seen = interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
        camera = Camera.perspective(float(SIDE), (SIDE, SIDE), batch=len(seen))
        return encoder(Observation(camera, image=seen)).global_

    return PictureFeatures("frechet-squeezenet", extract)


def _inception() -> PictureFeatures | None:
    """torch-fidelity's network; its own code would unpickle whatever the file holds, so it is given a clean copy."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not file.is_file():
        return None
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        return None
    from recon_core.torch_files import StoredTensor, open_torch_file

    with tempfile.TemporaryDirectory() as folder, open_torch_file(file) as content:
        clean = Path(folder) / "inception.pth"
        torch.save({name: value.load() for name, value in content.items() if isinstance(value, StoredTensor)}, clean)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(clean)).eval()
    # It resizes by itself, as the first implementation of FID did, and wants whole numbers.
    return PictureFeatures("fid", lambda pictures: network((pictures.clamp(0, 1) * 255).round().byte())[0])


def frechet_distance(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the sets' means and covariances, in float64.

    Where N or M is below D the covariances have no full rank, which the formula allows; but the fewer pictures, the
    larger the distance of two sets of equal kind (Binkowski et al., ICLR 2018): compare sets of equal sizes only.
    Raises UsageError for sets of fewer than two, of different feature counts, and with features that are not finite.
    """
    sets = [features.double() for features in (first, second)]
    for features in sets:
        if features.ndim != 2 or len(features) < 2:
            raise UsageError(f"Fréchet distance: a set has {len(features)} pictures; a covariance needs two or more")
        if not features.isfinite().all():
            raise UsageError("Fréchet distance: a feature is NaN or infinite")
    if sets[0].shape[1] != sets[1].shape[1]:
        raise UsageError(f"Fréchet distance: {sets[0].shape[1]} features in one set, {sets[1].shape[1]} in the other")
    apart = sets[0].mean(0) - sets[1].mean(0)
    roots = [_covariance_root(features) for features in sets]
    # With C = R^T R, the eigenvalues of C1 C2 are the squared singular values of R1 R2^T: no root of a rounding error.
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float(apart.square().sum() + sum(root.square().sum() for root in roots) - 2 * overlap))


def _covariance_root(features: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """R with R^T R the covariance (over N - 1); K is the smaller of N and D."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


__all__ = [
    "PictureFeatures",
    "frechet_distance",
    "picture_features",
    "squeezenet_features",
]
