"""Making the models that ship: measuring what they learn from, training and judging them."""
