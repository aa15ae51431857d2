"""How models run fast on a machine: precision, attention, batches, memory.

Not here: what a model computes (`models`, `teachers`).
"""
