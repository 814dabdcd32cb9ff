"""The command that makes a video: references, a prompt and adapters in, an mp4 and what made it out."""
