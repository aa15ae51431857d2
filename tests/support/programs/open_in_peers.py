"""`open_in_peers.py flagembedding|pylate FOLDER STUDENT WAYS`, run by the peers' own Python: what their loaders make of an export, as JSON.

Nothing of this project is imported here.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def flagembedding(folder: str, student: str, ways: int) -> dict[str, Any]:
    """Each item of its data set, and the shapes of one batch of its collator."""
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderCollator, AbsEmbedderTrainDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    args = AbsEmbedderDataArguments(train_data=[folder], train_group_size=ways, knowledge_distillation=True)
    dataset = AbsEmbedderTrainDataset(args, tokenizer)
    items = [dataset[place] for place in range(len(dataset))]
    batch = AbsEmbedderCollator(tokenizer=tokenizer)(items)
    shapes = [list(batch[name]["input_ids"].shape)[:1] for name in ("queries", "passages")]
    return {"items": items, "shapes": shapes, "scores": batch["teacher_scores"]}


def pylate(folder: str, student: str, ways: int) -> dict[str, Any]:
    """Each row of its data set, and the loss of three steps of its trainer."""
    from datasets import load_dataset
    from pylate import losses, models, utils
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    train, queries, documents = (load_dataset(folder, name=part, split="train") for part in ("train", "queries", "documents"))
    processing = utils.KDProcessing(queries=queries, documents=documents, n_ways=ways)
    train.set_transform(processing.transform)
    rows = [{name: row[name] for name in ("query", "documents", "scores")} for row in train]
    model = models.ColBERT(model_name_or_path=student, query_length=16, document_length=64, device="cpu")
    args = SentenceTransformerTrainingArguments(
        output_dir=f"{folder}/../pylate-out", max_steps=3, per_device_train_batch_size=4, logging_steps=1, report_to=[], use_cpu=True
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=train, loss=losses.Distillation(model=model),
        data_collator=utils.ColBERTCollator(tokenize_fn=model.tokenize),
    )  # fmt: skip
    trainer.train()
    return {"rows": rows, "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line]}


if __name__ == "__main__":
    name, *args, ways = sys.argv[1:]
    found = {"flagembedding": flagembedding, "pylate": pylate}[name](*args, int(ways))
    print(json.dumps(found))
