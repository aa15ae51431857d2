"""Teachers that are ONNX graphs: which file of a folder or of the hub, what it says of itself, and ONNX Runtime to compute it.

Not here: the tokens of a pair and its text (`retrieval/teachers`), models under torch.
"""
