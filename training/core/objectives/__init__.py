"""Training objectives: how noise is mixed in and what the model is to predict."""
