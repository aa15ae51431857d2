"""From files to the columns that a layout reads: which files, their records a piece at a time, types of fields, lists of candidates.

Not here: what the columns of a layout are called (`data/formats/scored_lists/readers`).
"""
