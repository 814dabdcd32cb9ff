"""All that knows LTX-2: versions, transformer (video stream), attention, checkpoint files, VAE, text."""
