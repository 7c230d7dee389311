"""What `recon new` writes: the files of `plugin/` with $placeholders filled in. One home; examples/recon-template is
its output, and a test compares the two."""
