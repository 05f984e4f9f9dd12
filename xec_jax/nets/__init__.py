"""Networks: pure linen modules and functions, arrays in, arrays out, hyper-parameters as fields."""
