"""The mathematics: engines, likelihoods, structures, methods. Knows nothing of files, users or stores."""
