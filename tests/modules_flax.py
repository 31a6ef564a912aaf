"""flax nnx modules as users write them, each small; imported by a fresh process as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import bayesmlp.layers.flax as layers

NUM_TOKENS = 7


class ConvNet(nnx.Module):
    """Convolution, batch normalisation, dropout, a layer without a bias."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        body = nnx.Linear(12, 4, use_bias=False, rngs=rngs)
        self.body = nnx.Sequential(body, nnx.relu, nnx.Dropout(0.5, rngs=rngs))
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.norm(self.conv(x)))
        return self.head(self.body(x.reshape(len(x), -1)))


class Attention(nnx.Module):
    """Token embedding, attention, a position-wise layer inside a list, mean over the positions."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(NUM_TOKENS, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x = self.norm(x + self.attention(x))
        x = x + self.blocks[1](nnx.gelu(self.blocks[0](x)))
        return self.head(x.mean(1))


class Merged(nnx.Module):
    """Positions of all rows in one axis, under one layer that has two names; marked layers of both methods."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = layers.VariationalLinear(2, 2, rngs=rngs)
        self.again = self.first
        self.head = layers.LaplaceLinear(2, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, positions, width = x.shape
        x = jnp.tanh(self.first(x.reshape(-1, width)))
        x = jnp.tanh(self.again(x)).reshape(rows, positions, width)
        return self.head(x.sum(1))


class TiedDecoder(nnx.Module):
    """Layers whose weights are also read outside their calls: transposed, and for their norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encode, self.body = nnx.Linear(3, 2, use_bias=False, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        self.scaled, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.encode(x) @ self.encode.kernel.T)
        x = self.scaled(jnp.tanh(self.body(x))) / jnp.linalg.norm(self.scaled.kernel)
        return self.head(jnp.tanh(x)).reshape(-1, self.head.out_features)  # of which no number is read


class Case(NamedTuple):
    """A module, the shape of its inputs, and their number of tokens if they are tokens."""

    build: Callable[[nnx.Rngs], nnx.Module]
    input_shape: tuple[int, ...]
    num_tokens: int | None = None


CASES = {
    "conv": Case(ConvNet, (4, 4, 1)),
    "attention": Case(Attention, (5,), NUM_TOKENS),
    "merged": Case(Merged, (4, 2)),
    "tied decoder": Case(TiedDecoder, (3,)),
}


def build(name: str, seed: int = 0) -> nnx.Module:
    """A module with weights, and batch statistics, of its own."""
    case = CASES[name]
    module = case.build(nnx.Rngs(seed))
    if case.num_tokens is None:
        module(jax.random.normal(jax.random.key(seed), (8, *case.input_shape)))
    return module
