"""The architecture. It is a module of its own, so that it can travel with the weights in `code/`."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """A small convolutional network for images of 8 × 8 pixels.

    Args:
        channels: of the first convolution; the second has twice as many.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 16, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of (rows, 10) for images of (rows, 1, 8, 8) whose pixels go from 0 to 16."""
        return self.layers(image / 16)
