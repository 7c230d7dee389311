"""The standard parts of recon: bodies, renderers, encoders, priors, losses, fitters, detectors, readers."""
