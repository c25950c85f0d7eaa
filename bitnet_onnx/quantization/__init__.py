"""Ways to put a matrix of floats on a grid: each in a file of its own, all with the interface of `method`."""
