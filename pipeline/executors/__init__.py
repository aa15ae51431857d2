"""Where shards are computed: this process, local processes, Ray.

Not here: what a shard holds (`stages`).
"""
