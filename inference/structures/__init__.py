"""Forms of the posterior over the weights."""

from .base import Structure
from .blocks import Blocks, LastLayer
from .buffered_low_rank import BufferedLowRank
from .diagonal import Diagonal
from .frozen import Frozen
from .full import Full
from .kronecker import Kronecker
from .low_rank import LowRank
from .mixture import EvidenceGrid, Mixture, MixtureState
from .particles import Particles
from .point import Point
from .subnetwork import Subnetwork

__all__ = [
    "Blocks",
    "BufferedLowRank",
    "Diagonal",
    "EvidenceGrid",
    "Frozen",
    "Full",
    "Kronecker",
    "LastLayer",
    "LowRank",
    "Mixture",
    "MixtureState",
    "Particles",
    "Point",
    "Structure",
    "Subnetwork",
]
