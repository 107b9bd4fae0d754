"""What the commands of `dsolo` do; the options that several of them share."""
