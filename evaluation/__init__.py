"""Evaluation of frozen features: pure functions of tensors (probes, neighbors, health) and the code that
feeds them.

Everything here reads features that an encoder has already produced. Nothing touches the self-supervised loss,
the optimizer or the encoder's gradients, so training is the same with and without evaluation.
"""
