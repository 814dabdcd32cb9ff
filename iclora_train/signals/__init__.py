"""Control signals extracted from pictures. data_prep draws references with them; eval measures generated clips."""
