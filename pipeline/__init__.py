"""The stages that turn a collection into training shards, and what runs them. Knows `data` and `retrieval`.

Not here: models and search (`retrieval`), training (`trainer`).
"""
