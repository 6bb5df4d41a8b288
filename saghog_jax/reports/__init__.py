"""What a person reads: HTML reports, tables, annotations."""
