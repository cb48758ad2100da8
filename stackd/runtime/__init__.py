"""One job from claim to outcome: graph, expressions, built-in nodes, journal."""
