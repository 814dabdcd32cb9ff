"""Making the embedded base nano: clips from photos, the VAE, the transformer."""
