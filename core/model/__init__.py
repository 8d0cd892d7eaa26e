"""The Transformer classifier: layers wired from operators alone, forward and backward."""
