"""Metrics of how a picture looks: LPIPS, DISTS, NIQE and the deltas of no-reference scores.

All are our own arithmetic over weights that a user has: nothing is ever fetched, and a metric whose
weights are not at hand leaves its column blank, with the reason, never a value from others.
"""
