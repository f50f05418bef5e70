"""The mathematics of RoAd, in torch alone: plane maps, their in-place form, stacks of rotations."""
