"""A small convolutional classifier of digits: the judge of samples, and the features of the Fréchet distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .digits import CLASSES, Digits

FEATURES = 16


class Classifier(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10], through 16 features."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 16, FEATURES),
        )
        self.head = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.body(images)))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] -> [B, 16]: what enters the last ReLU, in units of its spread over the training digits.

        Before the ReLU, because half of its output is one constant, which a Gaussian fits badly.
        """
        return (self.body(images) - self.mean) / self.std

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that get their label."""
        return float((self(images).argmax(dim=1) == labels).float().mean())


def train(digits: Digits, *, epochs: int = 30, batch_size: int = 64, seed: int = 0) -> Classifier:
    """A classifier trained on the training digits alone, in evaluation mode. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier()
        steps = epochs * -(-len(digits.images) // batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(digits.images)), batch_size):
                loss = F.cross_entropy(model(digits.images[rows]), digits.labels[rows])
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        model.eval()
        with torch.no_grad():
            features = model.body(digits.images)
            model.mean.copy_(features.mean(dim=0))
            model.std.copy_(features.std(dim=0))
    return model
