"""Running graphs token by token on the host: the cache, the choice of a token, and torch as a runner."""
