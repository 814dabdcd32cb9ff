"""Checkpoint files: versions, safetensors headers, key names of every layout, fp8 scales, loading into a module."""
