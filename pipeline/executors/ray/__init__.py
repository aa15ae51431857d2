"""Shards built by Ray actors: how Ray is started or joined, who gets which task, and the actor itself. The only home of ray.

Not here: how a task is done (`pipeline.executors.worker`).
"""
