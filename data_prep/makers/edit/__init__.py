"""Makers of references with a region to fill (inpainting, outpainting), with a still, or of one frame."""
