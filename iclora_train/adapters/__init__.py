"""Adapter files: read, check, convert, merge, extract, combine, and what is written beside them.

`python -m iclora_train.adapters --help` lists the commands.
"""
