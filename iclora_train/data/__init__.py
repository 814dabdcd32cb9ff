"""Shards, batches and prompts: from files on disk to the input of a training step."""
