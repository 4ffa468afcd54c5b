"""Stages that value examples: Shapley and other semivalues, leave-one-out, real retraining."""
