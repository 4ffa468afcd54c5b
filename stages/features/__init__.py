"""Stages that write feature vectors: embeddings, gradients, NTK features; and curvature."""
