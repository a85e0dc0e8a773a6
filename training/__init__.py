"""How the demo model of `cache_dit.demo` was trained; README.md tells the commands and the results."""
