"""What to put in place: one file a forecaster, each with the options that choose it. The contract is
`maths.forecaster`."""
