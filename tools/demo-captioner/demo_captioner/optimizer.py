"""Muon: momentum whose matrix is orthogonalised before each step (Keller Jordan, 2024)."""

import torch

# Coefficients of the quintic Newton-Schulz iteration from the same source.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon:
    """For 2-D weights; those of the same shape are stacked and updated together."""

    def __init__(self, parameters, weight_decay=0.02, momentum=0.95):
        self.weight_decay, self.momentum = weight_decay, momentum
        by_shape = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]

    @torch.no_grad()
    def step(self, learning_rate):
        """Updates the parameters from their gradients."""
        for group, buffer in self._groups:
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            updates = orthogonalised(gradient.lerp(buffer, self.momentum))
            decay = 1 - learning_rate * self.weight_decay
            for parameter, update in zip(group, updates, strict=True):
                scale = -learning_rate * 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(decay).add_(update, alpha=scale)


def orthogonalised(matrices, iterations=5):
    """Matrices (n, rows, columns) with all singular values brought near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.transpose(1, 2)
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.transpose(1, 2) if tall else x
