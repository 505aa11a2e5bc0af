"""A small, physically reasoned model of farmland seen by Sentinel-2: crops, canopies, parcels, skies."""
