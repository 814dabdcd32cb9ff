"""The LTX-2 video transformer in plain PyTorch. It reads like the paper; kernels are attached from outside."""
