"""Training of the small base nano: clips from photos, the VAE, the transformer."""
