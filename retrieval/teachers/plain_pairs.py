"""What a cross-encoder's folder may not ask for, as its files say: texts that are cut or lower-cased otherwise.

What may stand around a pair is found in `retrieval/teachers/pair_template.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.files import tokenizer_folder, tokenizer_settings, transformer_folder
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.sentence_transformers_files import check_arguments, check_truncation_side

ONE_OUTPUT = "a cross-encoder with one output (num_labels=1) is needed"


def check_texts(folder: Path, *, option: str) -> None:
    """Raises UserError for a cut on the left, arguments of sentence-transformers, or lower-casing that the tokenizer does not do."""
    weights = transformer_folder(folder)
    check_truncation_side(weights, option=option)
    file = FolderFile.read(transformer_folder(settings_folder(folder)) / "sentence_bert_config.json", option=option)
    check_arguments(file, weights)
    if file.content.get("do_lower_case") and not _lowers(weights):
        raise file.refusal("do_lower_case", "but a teacher's texts are lower-cased by its tokenizer alone, and this one does not")


def _lowers(weights: Path) -> bool:
    """Whether a tokenizer lower-cases texts itself; one without tokenizer.json is BERT's, which does as its own settings say."""
    if not (tokenizer_folder(weights) / "tokenizer.json").is_file():
        return True
    normalizer = json.dumps(tokenizer_settings(weights).get("normalizer"))
    return '"lowercase": true' in normalizer or '"Lowercase"' in normalizer
