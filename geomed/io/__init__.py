"""Files at the edge: rasters and their dates, read and written in windows."""
