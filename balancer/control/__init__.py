"""The loops: each reads one kind of fact and is its sole writer. The data path never imports them."""
