"""The model: its parameters, its forward pass and its loss, on the arithmetic alone."""

SEPARATOR = 0  # the token that begins every document, whatever the tokenizer: reading it resets the state
