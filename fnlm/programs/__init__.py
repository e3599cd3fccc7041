"""The programs behind the commands `fnlm glue`, `fnlm squad` and so on."""
