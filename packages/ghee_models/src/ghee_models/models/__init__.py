"""The models of the first wave, one folder each: card.py (no torch), network.py (torch only), model.py (the functions)."""
