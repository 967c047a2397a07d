"""The method in pure torch: information gains, weights, guidance and the sampling loop."""
