"""When to skip: one file a rule, each with the options that choose it. The contract is `maths.gate`."""
