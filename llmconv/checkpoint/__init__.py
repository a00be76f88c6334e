"""What a user brings: a source of modules, weights and a tokenizer."""
