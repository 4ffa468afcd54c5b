"""What a model's output does when the words of a text move."""
