"""Negatives: sources of candidates, filters, samplers, choice of queries.

Not here: the stages that write them (`stages`).
"""
