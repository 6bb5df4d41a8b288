"""Output for people: HTML reports, tables, annotations."""
