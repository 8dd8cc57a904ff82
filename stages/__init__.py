"""One module a verb of the console script `hmr-skel`."""
