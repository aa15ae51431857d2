"""What is minimised: losses, selection, the sum over a batch.

Not here: gradients and passes (`steps`).
"""
