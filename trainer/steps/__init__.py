"""A step: micro-batches, gradients, processes, optimizer.

Not here: the loss (`objective`); kernels of a machine (`cpu`).
"""
