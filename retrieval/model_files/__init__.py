"""What lies in a model's folder: settings, weights, lengths, digests; read without opening the model.

Not here: running a model (`models`, `teachers`).
"""
