"""What a drawing should be like (section 3.3, equations 7 to 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from recon_casl.model import Attributes, Drawn, Model
from recon_core.structures import LossValue
from recon_std.losses.adversarial import GeneratorLoss
from recon_std.losses.common import single, weighted_sum
from recon_std.losses.mesh import DeformationLoss, FlatnessLoss, MeshLaplacianLoss, MirrorSymmetryLoss
from recon_std.losses.silhouettes import IoULoss

RECONSTRUCTION, ATTRIBUTES, ADVERSARIAL, REGULAR, LAPLACIAN, FLAT = 2.0, 1.0, 1e-5, 0.1, 0.1, 0.01
"""lambda_rec, lambda_attri, lambda_adv, lambda_reg, lambda_lpl and lambda_flat of section 3.3."""


class Objective:
    """Equation 11 for the meshes of one template."""

    def __init__(self, model: Model) -> None:
        t = model.template
        self.iou = IoULoss()
        self.laplacian = MeshLaplacianLoss(t.faces, len(t.vertices), relative=True)
        self.flat = FlatnessLoss(t.faces)
        self.symmetric = MirrorSymmetryLoss(t.mirror)
        self.short = DeformationLoss()

    def reconstruction(
        self, drawn: Drawn, image: Float[Tensor, "B 3 S S"], mask: Float[Tensor, "B 1 S S"]
    ) -> LossValue:
        """Equations 7 and 9: mean absolute difference of the things, each on black, and 1 - IoU of the masks."""
        colours = (image * mask - drawn.image).abs().mean((1, 2, 3))
        losses = {"image": single("image", colours, 1.0), "iou": self.iou({"mask": drawn.mask}, {"mask": mask})}
        return weighted_sum(losses, dict.fromkeys(losses, RECONSTRUCTION))

    def regular(self, model: Model, of: Attributes) -> LossValue:
        """L_sym, L_deform, L_lpl and L_flat, with their weights."""
        vertices = {"vertices": model.prototype + of.offsets}
        losses = {
            "laplacian": self.laplacian(vertices, {"vertices": model.prototype.expand_as(of.offsets)}),
            "flatness": self.flat(vertices, {}),
            "symmetry": self.symmetric(vertices, {}),
            "deformation": self.short({"offsets": of.offsets}, {}),
        }
        weights = {"laplacian": LAPLACIAN, "flatness": FLAT, "symmetry": 1.0, "deformation": 1.0}
        return weighted_sum(losses, {name: REGULAR * weight for name, weight in weights.items()})

    def cycle(self, model: Model, of: Attributes, drawn: Drawn, learning: Sequence[str]) -> LossValue:
        """Equation 10 for the attributes that learn: what is read from the drawing is what it was drawn with."""
        losses = {}
        for name in learning:
            was, now = model.comparable(name, of), model.again(name, drawn.both)
            losses[name] = single(name, (was - now).abs().flatten(1).mean(1), 1.0)
        total = weighted_sum(losses, dict.fromkeys(losses, ATTRIBUTES))
        return LossValue(total.per_sample, {f"cycle_{name}": value for name, value in total.terms.items()})

    def fooling(self, critic: Callable[[Tensor], Tensor], drawn: Drawn) -> LossValue:
        """The generator's side of equation 8."""
        value = GeneratorLoss("wgan")({"scores": critic(drawn.both)}, {})
        return single("adversarial", value.per_sample, ADVERSARIAL)


def summed(*losses: LossValue) -> LossValue:
    """Sum of losses whose terms have names of their own."""
    terms = {name: value for loss in losses for name, value in loss.terms.items()}
    return LossValue(torch.stack([loss.per_sample for loss in losses]).sum(0), terms)
