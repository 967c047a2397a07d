"""Images in: pairs and stacks to fuse, single images to adapt a prior."""
