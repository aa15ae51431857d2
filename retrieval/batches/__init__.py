"""Token ids on their way to a model: many sequences as whole arrays, put into batches while the batch before is computed.

Not here: how a tokenizer makes ids (`models`, `teachers`); what a model computes of them (`compute`).
"""
