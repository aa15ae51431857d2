"""Teachers: who scores a query with a passage. `base.py` says what one is, `backends.py` which there are.

Not here: which pairs are scored (`pipeline/scoring`); stored scores (`data/logits`).
"""
