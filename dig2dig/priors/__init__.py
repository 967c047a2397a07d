"""Pretrained denoisers behind one contract: opening, running, adapting and storing them."""
