"""Where a run's curves go: TensorBoard, Weights & Biases, MLflow, Trackio, or a tracker of one's own.

Not here: the figures themselves, and metrics.jsonl, which has them whatever a tracker does (`trainer/reporting/metrics.py`).
"""
