"""How 2D joint detectors err, as a random disturbance of true joints. All lengths are shares of the person's box."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.interfaces import Settings
from recon_std.encoders.keypoints import JOINTS

_PARTNER = tuple(
    JOINTS.index(name.replace("left_", "right_") if name.startswith("left_") else name.replace("right_", "left_"))
    for name in JOINTS
)


def _rows(*endings: str) -> list[int]:
    return [row for row, name in enumerate(JOINTS) if name.endswith(endings)]


_LEGS, _HANDS = _rows("knee", "ankle", "heel", "toe"), _rows("index", "pinky")
_ARMS, _FACE = _rows("elbow", "wrist") + _HANDS, _rows("nose", "eye", "ear")
_LIMBS = tuple(
    [row for row in group if JOINTS[row].startswith(side)] for group in (_LEGS, _ARMS) for side in ("left", "right")
) + (_FACE, _LEGS, _LEGS + _rows("hip"))
_EXCHANGED = (_LEGS + _rows("hip"), _ARMS + _rows("shoulder"), list(range(len(JOINTS))))


class DetectorErrors(Settings):
    """Parameters of the disturbance.

    deviation: of the error of a joint that is plainly seen, by joint name or by the end of it, in shares of the
    longer side of the person's box (each of x and y). spread: deviation of the logarithm of a factor on it that a
    person's joints share. The growth with falling confidence follows what blazepose does on the sport photos of
    lsp_ext, whose median errors, labels' own included, are 0.036 above confidence 0.8, 0.05 below, 0.07 below 0.5 and
    0.11 below 0.2.
    """

    deviation: dict[str, float] = {
        "nose": 0.008, "eye": 0.008, "ear": 0.010, "neck": 0.015, "head_top": 0.018, "shoulder": 0.014, "elbow": 0.014,
        "wrist": 0.016, "hip": 0.017, "knee": 0.014, "ankle": 0.015, "heel": 0.018, "toe": 0.020, "index": 0.022,
        "pinky": 0.022,
    }  # fmt: skip
    spread: float = 0.5
    growth: float = 4.0
    """How much the deviation grows, in units of itself, from confidence 1 to 0."""
    even: float = 0.3
    """Share of people whose joints all err alike, by a deviation uniform below `even_deviation`."""
    even_deviation: float = 0.03
    outlier: tuple[float, float] = (0.003, 0.12)
    """Chance of a joint that is simply wrong, by `outlier_deviation`, at confidence 1 and 0."""
    outlier_deviation: float = 0.15
    doubtful: float = 0.5
    """Share of people whose whole reading is in doubt: all confidences are lowered by one factor from 0.3 to 1."""
    exchanged: float = 0.06
    """Chance that left and right are exchanged for the legs, the arms, or the whole body, in a reading that is wholly
    in doubt; it falls to a tenth where there is none."""
    covered_limb: float = 0.3
    """Chance that a limb, the face or the lower body is covered."""
    covered_joint: float = 0.05
    dropped: float = 0.03
    """Chance that a joint is missing, whatever the reason."""
    certain: float = 0.15
    """Share of people whose joints all come with confidence 1, as annotated ones do."""

    def deviations(self) -> Float[Tensor, " J"]:
        """Deviation of each of `JOINTS`."""
        return torch.tensor([next(v for k, v in self.deviation.items() if name.endswith(k)) for name in JOINTS])

    def disturb(
        self,
        rays: Float[Tensor, "B J 2"],
        known: Bool[Tensor, "B J"],
        box: Float[Tensor, " B"],
        half_size: Float[Tensor, "B 2"],
        guesses: Bool[Tensor, " B"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """What a detector would report of the true `rays`: disturbed rays and confidence, 0 for missing joints.

        known: joints that the detector has. box: longer side of the person, half_size: half the picture, in rays.
        guesses: it places hidden joints too, with low confidence (blazepose); others leave most of them out.
        """
        count, joints = known.shape

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=rays.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=rays.device)

        outside = (rays.abs() > half_size[:, None]).any(-1)
        hidden = outside | self._covered(uniform(count, joints), uniform(count, 2), rays.device)

        even = uniform(count, 1) < self.even
        own = self.deviations().to(rays) * torch.exp(self.spread * normal(count, 1))
        deviation = torch.where(even, self.even_deviation * uniform(count, 1), own)
        # Confidence is high where the joint is seen, anything but high where it is not, and tells of the error.
        confidence = torch.where(hidden, 0.02 + 0.75 * uniform(count, joints), 1 - 0.3 * uniform(count, joints) ** 4)
        doubt = 0.7 * uniform(count, 1) * (uniform(count, 1) < self.doubtful)
        certain = uniform(count, 1) < self.certain
        doubt = torch.where(certain, torch.zeros_like(doubt), doubt)
        confidence = confidence * (1 - doubt)
        deviation = deviation * (1 + self.growth * (1 - confidence))
        wrong = uniform(count, joints) < self.outlier[0] + (self.outlier[1] - self.outlier[0]) * (1 - confidence)
        deviation = torch.where(wrong, torch.full_like(deviation, self.outlier_deviation), deviation)
        confidence = torch.where(certain, torch.ones_like(confidence), confidence)
        seen = self._exchange(rays, known, uniform(count, 2), self.exchanged * (0.1 + doubt / 0.7))
        seen = seen + normal(count, joints, 2) * (deviation * box[:, None])[..., None]

        left_out = hidden & ~guesses[:, None] & (uniform(count, joints) < 0.7)
        missing = ~known | left_out | (uniform(count, joints) < self.dropped)
        # A person of whom next to nothing is left shows nothing to learn: all that was seen is kept.
        missing = torch.where((~missing).sum(-1, keepdim=True) < 6, ~known, missing)
        return seen, torch.where(missing, torch.zeros_like(confidence), confidence)

    def _covered(self, joint: Tensor, person: Tensor, device: torch.device) -> Bool[Tensor, "B J"]:
        limbs = torch.zeros(len(_LIMBS), len(JOINTS), dtype=torch.bool, device=device)
        for row, limb in enumerate(_LIMBS):
            limbs[row, limb] = True
        which = (person[:, 1] * len(_LIMBS)).long().clamp_max(len(_LIMBS) - 1)
        return (joint < self.covered_joint) | (limbs[which] & (person[:, :1] < self.covered_limb))

    def _exchange(self, rays: Tensor, known: Tensor, person: Tensor, chance: Tensor) -> Float[Tensor, "B J 2"]:
        partner = torch.tensor(_PARTNER, device=rays.device)
        groups = torch.zeros(len(_EXCHANGED), len(JOINTS), dtype=torch.bool, device=rays.device)
        for row, group in enumerate(_EXCHANGED):
            groups[row, group] = True
        which = (person[:, 1] * len(_EXCHANGED)).long().clamp_max(len(_EXCHANGED) - 1)
        swap = groups[which] & (person[:, :1] < chance) & known
        return torch.where(swap[..., None], rays[:, partner], rays)


class GaussianErrors(Settings):
    """Every joint seen, with the same normal error in x and y and confidence 1: the plain test protocol."""

    deviation: float = 0.02
    """In shares of the longer side of the person's box."""

    def disturb(
        self,
        rays: Float[Tensor, "B J 2"],
        known: Bool[Tensor, "B J"],
        box: Float[Tensor, " B"],
        half_size: Float[Tensor, "B 2"],
        guesses: Bool[Tensor, " B"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """As `DetectorErrors.disturb`."""
        noise = torch.randn(rays.shape, generator=generator, device=rays.device)
        return rays + noise * (self.deviation * box[:, None, None]), known.to(rays.dtype)
