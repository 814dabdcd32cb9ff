"""Which clips are used and which windows are cut from them."""
