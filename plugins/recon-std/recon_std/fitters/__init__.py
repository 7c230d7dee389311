"""Fitters: from evidence to the body that explains it. docs/fitting.md has the energy and how to choose."""
