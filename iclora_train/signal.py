"""`python -m iclora_train.signal clip=CLIP adapter=FILE out=FILE`: the control signal of a new clip, as in training.

`python -m iclora_train.signal mask ...` makes an attention mask. The makers are those of data_prep, which this package
never imports: this module starts their command (docs/signals.md).
"""

from iclora_train.commands import make_signal

if __name__ == "__main__":
    make_signal()
