"""Engines that run the preparation: this process, worker processes, or Ray."""
