"""Makers of structure references: edges, skeletons, depth, optical flow, motion tracks."""
