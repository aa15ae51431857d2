"""The steps of `prep import`: lists are read once and put on disk by the hash of what has to meet, then each part fits into memory.

Not here: the command (`pipeline.interchange.importing`), layouts of files (`data/formats/scored_lists`).
"""
