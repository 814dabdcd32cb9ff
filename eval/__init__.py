"""An adapter and held-out pairs in; numbers with intervals, verdicts and a report out. May import iclora_train only."""
