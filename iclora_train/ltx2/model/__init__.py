"""The LTX-2 video transformer. It reads like the paper; of kernels/ it imports attention and modulation only."""
