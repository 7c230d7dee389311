"""The networks of the published checkpoints. Their modules bear the names of the published files' entries."""
