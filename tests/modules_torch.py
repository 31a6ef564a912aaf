"""PyTorch modules as users write them, each small; imported by a fresh process as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import bayesmlp.layers.torch as layers

NUM_TOKENS = 7


class ConvNet(nn.Module):
    """Convolution, batch normalisation, in-place activations, dropout, a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.tanh(self.norm(self.conv(x)))
        return self.head(self.body(x))


class Transformer(nn.Module):
    """Token embedding, positions, PyTorch's own encoder layer, mean over the positions."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(NUM_TOKENS, 4)
        self.register_buffer("positions", torch.arange(5))
        self.place = nn.Embedding(5, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, batch_first=batch_first)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.place(self.positions)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(self.encoder(x).mean(1 if self.batch_first else 0))


class GraphNet(nn.Module):
    """Messages along the edges of one graph; nodes of all rows lie in one axis, and rounds share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("senders", torch.tensor([0, 1, 2, 3, 0]))
        self.register_buffer("receivers", torch.tensor([1, 2, 3, 0, 2]))
        self.message = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        rows, count, width = nodes.shape
        for _ in range(2):
            sent = self.message(nodes[:, self.senders].reshape(-1, width)).reshape(rows, -1, width)
            nodes = torch.tanh(nodes + torch.zeros_like(nodes).index_add_(1, self.receivers, sent))
        return self.head(nodes.reshape(rows * count, width)).reshape(rows, count, 3).sum(1)


class Residual(nn.Module):
    """A layer that is called twice and whose output is written into; marked layers of both methods."""

    def __init__(self) -> None:
        super().__init__()
        self.body = layers.VariationalLinear(3, 3)
        self.head = layers.LaplaceLinear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            h = self.body(x)
            h += x
            x = torch.tanh(h)
        return self.head(x)


class TiedDecoder(nn.Module):
    """Layers whose weights are also read outside their calls: transposed, and for their norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.body = nn.Linear(3, 2, bias=False), nn.Linear(3, 3)
        self.scaled, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(nn.functional.linear(self.encode(x), self.encode.weight.T))
        x = self.scaled(torch.tanh(self.body(x))) / self.scaled.weight.norm()
        return self.head(torch.tanh(x).to(self.head.weight.device))  # of which no number is read


class Case(NamedTuple):
    """A module, the shape of its inputs, and their number of tokens if they are tokens."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    num_tokens: int | None = None


CASES = {
    "conv": Case(ConvNet, (1, 4, 4)),
    "transformer": Case(Transformer, (5,), NUM_TOKENS),
    "transformer, positions first": Case(lambda: Transformer(batch_first=False), (5,), NUM_TOKENS),
    "graph": Case(GraphNet, (4, 2)),
    "residual": Case(Residual, (3,)),
    "tied decoder": Case(TiedDecoder, (3,)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A module with weights, and batch statistics, of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        case = CASES[name]
        module = case.build()
        if case.num_tokens is None:
            module.train()(torch.randn(8, *case.input_shape))  # moves the statistics of batch normalisation
        return module
