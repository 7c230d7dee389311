"""Renderers: warp (the default) and pytorch3d."""
