"""A real ComfyUI server for tests, with tiny models and random text features. Nothing is written into its checkout."""
