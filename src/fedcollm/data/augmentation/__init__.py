"""Augmentation: a client changes its own training examples anew in every epoch, without changing their labels."""
