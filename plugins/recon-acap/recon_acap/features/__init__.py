"""ACAP features of meshes that share a connectivity: a library by itself, for tensors and NumPy arrays.

codec = AcapCodec(Connectivity(reference_vertices, faces))
features = codec.extract(vertices)        # (B, V, 9)
vertices = codec.reconstruct(features)    # (B, V, 3)
"""

from recon_acap.features.codec import AcapCodec
from recon_acap.features.connectivity import Connectivity
from recon_acap.features.parts import part_features
from recon_acap.features.released import ReleasedPoints
from recon_acap.features.scaling import SCALED_LIMIT, FeatureScaling

__all__ = ["SCALED_LIMIT", "AcapCodec", "Connectivity", "FeatureScaling", "ReleasedPoints", "part_features"]
