"""How pools are ranked for all shards of queries at once: what is asked, the cut into blocks, their search, and the merging of its lists.

Not here: the sources of ranked lists (`negatives`), the search of one block (`retrieval.search`), the table itself (`stages.pools`).
"""
