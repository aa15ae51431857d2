"""Texts to vectors: whole tables of them, in shards that resume.

Not here: the model itself (`models`).
"""
