"""Students: opening a checkpoint, its tokenizer, pooling and vectors.

Not here: teachers of pairs (`teachers`); whole corpora (`encoding`).
"""
