"""Networks: the residual family, timm by name, weights."""
