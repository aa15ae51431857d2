"""Files on this machine: paths, text lines, whole outputs, what a killed process left.

Not here: what the files mean (`formats`, `tables`).
"""
