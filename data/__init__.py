"""What lies on disk: records, schemas, shards, manifests, settings. No torch, ray, faiss or transformers."""
