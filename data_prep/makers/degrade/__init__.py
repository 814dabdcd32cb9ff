"""Makers of degraded references: blur, compression, noise, low resolution, grey."""
