"""Losses used across the papers: each (prediction, target) to per-sample values, by registered name."""
