"""Makers of references with a region to fill (inpainting, outpainting), or with a still."""
