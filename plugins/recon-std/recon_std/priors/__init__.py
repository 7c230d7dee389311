"""Densities over body pose and shape, trained on motion capture by `python -m recon_std.priors.train`."""
