"""ACAP-VAE: a disentangled embedding of body shape and pose over deformation features (Jiang et al., 2020)."""
