"""Where on a page the handwriting is: backends that find it, and the masks they leave on disk."""
