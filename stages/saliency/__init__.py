"""How a model's output depends on the tokens of a text: gradients, paths and ablation."""
