"""Bodies in SMPL format: the free one, and licensed SMPL files that were added."""

from recon_std.bodies.library import load_body
from recon_std.bodies.smpl import SMPLBody

__all__ = ["SMPLBody", "load_body"]
