"""Blend a generated region into its source clip, at the clip's own size and bit depth."""
