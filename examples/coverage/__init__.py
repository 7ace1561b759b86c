"""What pnc can do with each architecture of timm's registry."""
