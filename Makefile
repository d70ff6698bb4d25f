# For those whose fingers say `make`: everything is in the script ./run, which needs no make.
.PHONY: help setup demo test lint format pytest wheel clean
help setup demo test lint format pytest wheel clean:
	@./run $@
