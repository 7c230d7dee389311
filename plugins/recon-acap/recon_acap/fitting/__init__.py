"""Fits in the latent space of a body generator (section 7): meshes, markers, scans, joints, sequences."""

from recon_acap.fitting.fits import fit_joints, fit_markers, fit_meshes, fit_scans
from recon_acap.fitting.generator import Generator
from recon_acap.fitting.settings import LatentFitSettings
from recon_acap.fitting.solve import LatentFit
from recon_core.structures import Landmarks

__all__ = [
    "Generator",
    "Landmarks",
    "LatentFit",
    "LatentFitSettings",
    "fit_joints",
    "fit_markers",
    "fit_meshes",
    "fit_scans",
]
