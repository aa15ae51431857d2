"""What a run reports: lines, curves, results, dry runs.

Not here: what is computed (`steps`, `objective`).
"""
