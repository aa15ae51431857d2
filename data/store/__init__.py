"""Where a store lies: a folder that all see, or a prefix of an object store.

Not here: what a store holds (`data/tables`, `data/logits`), single files at an address (`data/remote`).
"""
