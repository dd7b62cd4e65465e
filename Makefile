# The front door. Settings: PG=18|16, PG_CONFIG=/path/to/pg_config, CUDA=1, PG_SIGHT_CACHE=/folder.

ifdef PG
export PG
endif
ifdef PG_CONFIG
export PG_CONFIG
endif
ifdef SUDO
export SUDO
endif
ifdef DESTDIR
export DESTDIR
endif
ifdef CUDA
export CUDA
endif

.PHONY: help demo gallery psql clean-demo install test test-17 test-image soak lint check-versions bench

help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: ## Set everything up, then caption, embed, index and search 300 pictures in SQL
	@scripts/demo.sh

gallery: ## Search the demo's pictures in the browser; makes the demo first where it is missing
	@scripts/gallery.sh

psql: ## Open psql on the demo database; reads SQL from standard input when that is no terminal
	@scripts/cluster.sh psql

clean-demo: ## Stop the demo cluster and remove it
	@scripts/cluster.sh remove

install: ## Build and install into the PostgreSQL of PG_CONFIG (SUDO=sudo where only root may write; CUDA=1 for NVIDIA GPUs)
	@scripts/setup.sh packages rust postgres pgrx
	@scripts/install.sh

test: ## Run all tests, with their own set-up
	@scripts/test.sh

test-image: ## Run the image's steps in a fresh Debian 13 with PostgreSQL 17, and test what they made (as root, with debootstrap)
	@scripts/chroot.sh test

test-17: ## Run the tests in SQL and on clusters on PostgreSQL 17, in a Debian 13 of their own (as root, with debootstrap)
	@scripts/chroot.sh suite

soak: ## Crash, kill, cancel, write and read for half an hour, and look for rows that are lost or wrong
	@scripts/soak.sh

lint: ## Check format and lints
	@scripts/lint.sh

check-versions: ## Check the extension's code for each PostgreSQL from 14 to 18 whose headers are at hand
	@scripts/setup.sh packages rust postgres
	@scripts/versions.sh

bench: ## Run the benchmarks
	@scripts/bench.sh
