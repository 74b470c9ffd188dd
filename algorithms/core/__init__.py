"""The pieces that the algorithms share: flat buffers, compressors, collectives, partial synchronisation."""
