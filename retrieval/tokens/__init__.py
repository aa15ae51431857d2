"""Token ids of many texts at once: remembered by text and by word, in arrays.

Not here: what a tokenizer is (`models`); pairs and their templates (`teachers`); batches (`batches`).
"""
