"""The stages that turn a collection into training shards, and their runner. Knows `data` and `retrieval`."""
