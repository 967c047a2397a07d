"""Lightning modules: fusing pairs with a prior, and training a prior."""
