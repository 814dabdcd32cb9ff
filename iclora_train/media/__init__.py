"""Video files, sound and pictures: open, time, convert and write them."""
