"""From page descriptors to rankings, figures and evidence."""
