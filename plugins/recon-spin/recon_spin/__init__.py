"""SPIN: a body regressor that learns from fits made inside its training loop (Kolotouros et al., 2019)."""
