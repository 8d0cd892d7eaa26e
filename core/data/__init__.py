"""Data: sets fetched and checked, files read, splits, tokenizers, patches, plain baselines."""
