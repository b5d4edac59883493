# Everything runs in virtual environments made here; a machine needs Python >= 3.11, git and make.
PROMPT ?= a large red circle moves right
MODEL ?= tiny

.PHONY: demo test slow lint parity train notebooks clean

demo:  ## paint one prompt with the bundled model: of four clips the one that the captioner finds likeliest
	@sh launch/venv.sh .venv ""
	@mkdir -p out
	@.venv/bin/sora-jax generate "$(PROMPT)" --size 64x48 --seed 1 --model "$(MODEL)" --best 4 --out out/demo.mp4 --sheet out/demo.png >/dev/null
	@echo out/demo.mp4 && echo out/demo.png

test:  ## the laws, on the newest Python here; then a smoke of the main job on 3.11 where there is one
	@sh launch/venv.sh .venv-test test
	.venv-test/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
	@if [ "$$(.venv-test/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")')" != 3.11 ] && sh launch/python.sh 3.11 >/dev/null 2>&1; then \
		sh launch/venv.sh .venv-test-3.11 test 3.11 && .venv-test-3.11/bin/python -m pytest -q -m smoke; \
	else echo "no second Python: the smoke on 3.11 is left out"; fi

slow:  ## the tests that take longer than 20 s each
	@sh launch/venv.sh .venv-test test
	.venv-test/bin/python -m pytest -q -m slow

lint:
	@sh launch/venv.sh .venv-test test
	.venv-test/bin/ruff check . && .venv-test/bin/ruff format --check .

parity:  ## what torch, diffusers and transformers compute (in a Python 3.11 of their own), written anew and compared
	@sh launch/venv.sh .venv-test test
	@sh launch/parity.sh .venv-parity
	@for script in tests/parity/wan*.py; do .venv-parity/bin/python $$script || exit 1; done
	@rm -rf .venv-parity/wan && .venv-test/bin/sora-jax import wan tests/fixtures/wan --out .venv-parity/wan/ours
	@.venv-test/bin/sora-jax export .venv-parity/wan/ours --format diffusers --out .venv-parity/wan/back
	@.venv-parity/bin/python tests/parity/exported.py .venv-parity/wan/back
	@.venv-test/bin/python tests/parity/lora_back.py .venv-parity/wan/ours .venv-parity/wan/lora.safetensors
	@.venv-parity/bin/python tests/parity/wan_lora.py .venv-parity/wan/lora.safetensors
	.venv-test/bin/python -m pytest -q -m "" tests/test_weights_parity.py tests/test_wan_vae.py

train:  ## the whole system from nothing on two CPU cores, in about 15 minutes; run again to resume
	@sh launch/venv.sh .venv-test test
	@PATH="$(CURDIR)/.venv-test/bin:$$PATH" bash launch/speedrun.sh

notebooks:  ## every notebook anew, in full, its pictures kept; `make notebooks ONLY="01 04"` for some
	@sh launch/venv.sh .venv-test test
	.venv-test/bin/python notebooks/run.py $(ONLY)

clean:
	rm -rf .venv .venv-test .venv-test-3.11 .venv-parity out build dist *.egg-info .pytest_cache .ruff_cache
