"""report.html: one page that opens from disk, needs no network, and whose tables read without JavaScript."""
