"""A teacher behind HTTP: what servers are asked and answer (`shapes.py`), how they are asked (`client.py`), and the teacher of both.

Not here: starting a server; teachers whose weights are read (`retrieval/teachers`).
"""
