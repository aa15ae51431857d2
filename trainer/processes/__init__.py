"""The processes of a training: meeting, summing, waiting for each other, starting again.

Not here: which process computes what (`steps`).
"""
