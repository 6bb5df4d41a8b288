"""Runs jobs in several processes of this machine, or with Apache Beam."""
