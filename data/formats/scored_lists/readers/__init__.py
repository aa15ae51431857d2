"""One file a layout: from its files to `ListBatch`es, a bounded piece at a time.

Not here: writing (`writers`); ids, keys and texts of a collection (`pipeline/interchange`).
"""
