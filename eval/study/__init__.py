"""People's judgement: a page of blind pairs of clips, and the preference that its answers give."""
