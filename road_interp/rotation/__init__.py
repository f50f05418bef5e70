"""The mathematics of RoAd, in torch only: plane maps, the in-place rotation, butterfly stacks."""
