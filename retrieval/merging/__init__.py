"""Several checkpoints of one architecture averaged into one.

Not here: adapters merged into their base (`models`).
"""
