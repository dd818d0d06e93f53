"""Reports: HTML pages that need no other file, labelled image grids, matplotlib figures."""
