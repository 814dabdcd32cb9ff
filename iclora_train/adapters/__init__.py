"""Adapters: attach LoRA to the model, and read, check, convert, merge, extract and combine adapter files.

`python -m iclora_train.adapters --help` lists the commands on files.
"""
