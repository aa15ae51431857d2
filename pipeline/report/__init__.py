"""Pages and figures about a finished store.

Not here: what a stage says while it runs (`pipeline/progress.py`).
"""
