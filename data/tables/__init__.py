"""Tables of the store: schemas, shards, manifests, ragged columns.

Not here: how a table is computed (`pipeline/stages`).
"""
