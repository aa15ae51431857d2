"""Search over stored vectors and words: exact, approximate, BM25.

Not here: what is done with the candidates (`pipeline/negatives`).
"""
