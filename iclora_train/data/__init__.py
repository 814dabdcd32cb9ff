"""Shards, batches, videos and prompts: everything between a file on disk and a training step."""
