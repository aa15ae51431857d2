"""What a run tells: lines, curves, results, dry runs.

Not here: what is computed (`steps`, `objective`).
"""
