"""Makers of control signals: edges, skeletons, depth, optical flow, motion tracks."""
