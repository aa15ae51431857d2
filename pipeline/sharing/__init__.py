"""How jobs that run side by side on one store share its work: who lives, who does what, which part is whose.

Not here: how a task is done (`pipeline/executors`), what a table's tasks are (`pipeline/tables/building.py`).
"""
