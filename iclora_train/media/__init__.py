"""Video files and pictures: open, time, convert and write them."""
