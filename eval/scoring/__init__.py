"""From clips to figures: metric values for every window and condition."""
