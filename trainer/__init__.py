"""Streams training shards and trains the student. Knows `data` and `retrieval`; never `pipeline`, never ray."""
