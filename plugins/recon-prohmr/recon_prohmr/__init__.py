"""ProHMR: a distribution of bodies for an image, by a conditional normalizing flow (Kolotouros et al., 2021)."""
