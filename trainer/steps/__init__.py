"""A step: micro-batches, gradients, optimizer.

Not here: the loss (`objective`); kernels of a machine (`cpu`); the meeting of processes (`processes`).
"""
