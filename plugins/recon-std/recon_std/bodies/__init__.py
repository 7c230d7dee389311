"""Bodies in SMPL format: the free one, and licensed SMPL files that the user added."""

from recon_std.bodies.library import SMPLImporter, add_body, bodies_folder, load_body
from recon_std.bodies.licensed import convert_smpl_file
from recon_std.bodies.parts import ANATOMICAL_PARTS, TORSO_SIDES, face_labels
from recon_std.bodies.smpl import SMPLBody, mirrored

__all__ = [
    "ANATOMICAL_PARTS",
    "TORSO_SIDES",
    "SMPLBody",
    "SMPLImporter",
    "add_body",
    "bodies_folder",
    "convert_smpl_file",
    "face_labels",
    "load_body",
    "mirrored",
]
