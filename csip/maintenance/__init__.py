"""Looking after a store: what is published, whether it is whole, how two data sets differ, and what can go."""
