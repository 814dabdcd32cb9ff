"""Control signals read from pictures: data_prep draws them as references, eval reads them from generated clips."""
