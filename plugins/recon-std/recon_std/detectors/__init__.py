"""Detectors: who is where in a picture, with joints and masks. Registered by name in recon_std.plugin."""
