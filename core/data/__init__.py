"""Data: data sets fetched and checked, files, splits, tokenizers, patches, simple baselines."""
