"""How many replica groups a model needs, by the work that arrives."""
