"""Teachers: models that score a query with a passage.

Not here: which pairs are scored (`pipeline/scoring`); stored scores (`data/logits`).
"""
