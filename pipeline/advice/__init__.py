"""`prep advise`: what a collection and a teacher are like, by a sample, and which recipe and rules that speaks for.

Not here: what a finished store holds (`pipeline/report`), and what a trained student is worth (`retrieval/evaluation`).
"""
