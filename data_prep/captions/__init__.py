"""Captions by a vision-language model: instructions, the model or its endpoint, checks of the answers, text files."""
