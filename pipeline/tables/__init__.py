"""How a table comes to be complete: which shards are stale, the tasks that build them, the journal, the manifest.

Not here: what a shard holds (`stages`), who does a task (`executors`), jobs side by side (`sharing`).
"""
