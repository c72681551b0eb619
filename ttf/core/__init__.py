"""How compression enters a model: the tokens that go from block to block, the plan, hosts, apply and remove."""
