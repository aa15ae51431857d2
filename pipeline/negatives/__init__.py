"""Negatives: sources of candidates, filters, samplers, choice of queries, and the two tables beside them (`pools.pairs`, `index`).

Not here: all other stages (`stages`).
"""
