"""The intermediate form and what is done with it: tracing, editing, evaluating."""
