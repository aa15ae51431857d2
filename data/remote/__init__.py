"""Object stores: what is read and written there, and its copy on this machine.

Not here: the tables themselves (`tables`).
"""
