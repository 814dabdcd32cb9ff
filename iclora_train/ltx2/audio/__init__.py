"""Sound of the LTX-2 family: mel front end, audio VAE, vocoder with bandwidth extension, audio tokens."""
