"""Tiny checkpoints with random weights in the very layouts of public models, and the table of what becomes of each.

    texts.py         sentences that tokenizers are trained on; queries and passages        tokenizers.py   TOKENIZERS[name](folder)
    configs.py       config.json as published, with tiny sizes                             weights.py      config + tokenizer -> folder
    folders.py       what sentence-transformers writes beside the weights
    encoders.py      folders of students        rerankers.py   folders of teachers         onnx_exports.py the same as graphs
    *_rows.py        the rows of the table      measure.py     what becomes of a row       page.py         the table as a page

A layout is a function `(folder) -> folder`. `tests/slow/test_model_table.py` measures all rows.
"""
