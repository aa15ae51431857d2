"""How Tevatron reads a file of lists: an excerpt of its `tevatron/retriever/dataset.py` (commit dd06310, Apache-2.0, texttron/tevatron).

Its package index has version 0.1.0 alone, which reads another layout, so its data set cannot be installed. These are the statements of
`TrainDataset.__init__` and of `DistilTrainDataset.__getitem__` that a file with `positive_passages` goes through, as they stand there but
for line breaks, types, and what is None for texts.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import load_dataset


class DistilTrainDataset:
    def __init__(self, data_args: Any, trainer: Any) -> None:
        self.data_args = data_args
        self.trainer = trainer
        self.train_data = load_dataset(
            self.data_args.dataset_name,
            self.data_args.dataset_config,
            data_files=self.data_args.dataset_path,
            split=self.data_args.dataset_split,
            cache_dir=self.data_args.dataset_cache_dir,
            num_proc=self.data_args.num_proc,
        )

    def __len__(self) -> int:
        return len(self.train_data)

    def __getitem__(self, item: int) -> Any:
        group = self.train_data[item]
        epoch = int(self.trainer.state.epoch)
        _hashed_seed = hash(item + self.trainer.args.seed)
        query_text = group["query"]
        query_image = None
        formated_query = (self.data_args.query_prefix + query_text, query_image)
        formated_documents: list[Any] = []
        formated_scores: list[Any] = []
        positives = group["positive_passages"]
        selected_positive_document = positives[(_hashed_seed + epoch) % len(positives)]
        positive_document_text = (
            selected_positive_document["title"] + " " + selected_positive_document["text"]
            if "title" in selected_positive_document
            else selected_positive_document["text"]
        )
        formated_documents.append((self.data_args.passage_prefix + positive_document_text, None))
        formated_scores.append(
            selected_positive_document["score"]
            if "score" in selected_positive_document
            else ValueError("score (used for distilation) is not found in positive_passages in the training dataset")
        )
        negative_size = self.data_args.train_group_size - 1
        if len(group["negative_passages"]) < negative_size:
            selected_negative_documents = random.choices(group["negative_passages"], k=negative_size)
        elif self.data_args.train_group_size == 1:
            selected_negative_documents = []
        else:
            _offset = epoch * negative_size % len(group["negative_passages"])
            selected_negative_documents = [x for x in group["negative_passages"]]
            random.Random(_hashed_seed).shuffle(selected_negative_documents)
            selected_negative_documents = selected_negative_documents * 2
            selected_negative_documents = selected_negative_documents[_offset : _offset + negative_size]
        for negative_document in selected_negative_documents:
            negative_document_text = (
                negative_document["title"] + " " + negative_document["text"] if "title" in negative_document else negative_document["text"]
            )
            formated_documents.append((self.data_args.passage_prefix + negative_document_text, None))
            negative_document_score = (
                negative_document["score"]
                if "score" in negative_document
                else ValueError("score (used for distilation) is not found in negative_passages in the training dataset")
            )
            formated_scores.append(negative_document_score)
        return formated_query, formated_documents, formated_scores
