"""Work shared between processes of this machine, or by Beam."""
