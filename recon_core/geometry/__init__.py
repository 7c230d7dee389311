"""Pure functions of geometry: rotations, cameras and crops, alignment, mesh topology."""
