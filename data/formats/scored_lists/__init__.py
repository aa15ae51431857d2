"""Lists of candidates with a teacher's scores, in the layouts that others publish and train from, and in our own.

Not here: collections (`data/formats`); what becomes of a list in a store (`pipeline/interchange`).
"""
