"""Score clips: metric values per window and condition."""
