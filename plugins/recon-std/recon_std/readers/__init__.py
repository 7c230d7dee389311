"""Reads data sets and detections from the files their owners publish."""
