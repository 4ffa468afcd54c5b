"""The network, its tokens and its weights."""
