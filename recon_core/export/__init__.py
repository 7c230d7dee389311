"""Writing a Reconstruction to files that other programs read."""
