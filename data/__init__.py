"""What lies on disk: records, schemas, shards, manifests, settings. No torch, ray, faiss or transformers.

Not here: how a table is computed (`pipeline`), what a model computes (`retrieval`).
"""
