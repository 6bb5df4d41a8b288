"""Tables of pages (CSV, IIIF, folders), decoding of page images, hashes of page files."""
