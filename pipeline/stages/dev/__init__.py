"""Stage `dev`: what a trainer measures the student on as it goes. A part of the collection, and small collections as they are.

Not here: reading and searching them (`trainer/evaluation`).
"""
