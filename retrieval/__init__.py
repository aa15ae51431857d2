"""Text to vectors, scores, ranked lists and metrics. Knows `data` only."""
