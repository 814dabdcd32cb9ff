"""The video VAE of every LTX-2 version, tiling, the diffusion decoder and the latent upsampler."""
