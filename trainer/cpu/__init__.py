"""The fast path of CPUs: attention, dropout, packing, workers.

Not here: anything that another machine needs (`steps`).
"""
