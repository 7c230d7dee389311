"""Settings of the latent fits; section [acap-vae] of a settings file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recon_core.interfaces import Settings


class LatentFitSettings(Settings):
    """Energies are halves of whitened squares: noise and outlier scales in metres or pixels, codes in units of their
    spread in training. The paper's weights of equation 15 are a vertex noise of 1 mm; those of equation 16, divided by
    its pose weight of 10, are `keypoint_*`, `bending` and a shape weight of 0.5."""

    optimizer: Literal["gauss-newton", "adam"] = Field(
        default="gauss-newton", description="damped Gauss-Newton, or Adam as in the paper"
    )
    iterations: int = Field(default=30, ge=1, description="most Gauss-Newton steps of each stage")
    adam_iterations: int = Field(default=200, ge=1, description="Adam's iterations of each stage")
    adam_rate: float = Field(default=0.05, gt=0, description="Adam's first step")
    tolerance: float = Field(
        default=1e-4, gt=0, description="a stage ends when a step lowers the energy by at most this part"
    )
    vertex_noise: float = Field(default=1e-3, gt=0, description="metres; of a corresponded mesh")
    landmark_noise: float = Field(default=5e-3, gt=0, description="metres; of landmarks and markers")
    scan_noise: float = Field(default=5e-3, gt=0, description="metres; of a scan's points along their normals")
    scan_outlier: float = Field(default=4.0, gt=0, description="Geman-McClure's scale of a scan, in units of its noise")
    scan_reach: float = Field(default=0.08, gt=0, description="metres; farther from the body a point has no match")
    scan_points: int = Field(default=4000, ge=100, description="points of a scan that are used, evenly drawn")
    joint_noise: float = Field(default=0.02, gt=0, description="metres; of joints in space")
    keypoint_noise: float = Field(default=4.0, gt=0, description="pixels of joints, of a body 1000 px tall")
    keypoint_outlier: float = Field(default=10.0, gt=0, description="Geman-McClure's scale, in units of their noise")
    bending: float = Field(default=4.0, ge=0, description="weight of exp(angle) of elbows and knees, joints only")
    shape_weight: float = Field(default=1.0, ge=0, description="of half the shape code's square")
    pose_weight: float = Field(default=1.0, ge=0, description="of half the pose code's square")
    smooth: float = Field(default=10.0, ge=0, description="of half the squared change of the pose code a frame")
    headings: int = Field(default=8, ge=1, description="directions tried where no landmark tells which way is front")
