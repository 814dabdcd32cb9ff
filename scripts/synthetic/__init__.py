"""Checkpoints with the official key names, shapes and metadata, and random weights."""
