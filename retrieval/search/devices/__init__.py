"""Exact search on GPUs: the corpus on one device or several, candidates and scores there, the choice between them and the processor.

Not here: what is proved of the candidates, and who asks for them (`retrieval.search.exact`, `retrieval.search.searcher`).
"""
