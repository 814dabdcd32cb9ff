"""Write report.html: one page that opens from disk, needs no network, and shows its tables without JavaScript."""
