"""Changes of weights that leave a model as it is and make it easier to round."""
