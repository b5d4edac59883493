"""sora_jax: text to video of any size and length, in JAX.

    raw video, images -- data -- captions -- latents -- packed rows -- DiT -- sampler -- decoder -- mp4

Everything visual is one packed row of spacetime patches; every patch knows where it sits in its own clip (pos), which
clip of the row it belongs to (seg) and its own noise level (t). The rooms the story passes through:

    cli.py          the `sora-jax` command, thin               (cli_paint.py, cli_data.py, cli_evaluate.py, flags.py)
    media/          mp4 webm gif png jpg <-> Video(frames uint8 [f h w 3], fps)
    model.py        Model: text, DiT and VAE in one folder; load, save, generate
    prompting.py    every other verb: animate, extend, loop, connect, fill, outpaint, edit, interpolate, storyboard
    drafts.py       what they all paint: clips with holes
    captioning.py   what one does with a captioner; expansion.py: short prompts -> descriptive ones    (endpoint.py)
    data/           raw video -> packed rows
      worlds.py       the procedural, captioned world that knows its own truth      (drawing.py paints it)
      dataset.py      a folder of clips, and the latents of one, as TFDS datasets   (captions.py, shards.py)
      curate.py       raw footage to a list of good clips        (shots.py, scores.py, duplicates.py, curate_report.py)
      recaption.py    new captions for a dataset's clips    (footage.py: clips as a captioner sees them)
      packing.py      patchify; variable grids -> dense rows, balanced across hosts
      pipeline.py     deterministic batches, their cursor saved with the checkpoint
    models/         what owns parameters
      layers.py       convolution, norms, 3-D rotary positions, attention          (kernels.py: what computes it)
      vae.py          the causal spacetime autoencoder, streamed == full
      text.py         the tokenizer and the T5 encoder
      dit.py          the diffusion transformer
      captioner.py    clips to captions
      expander.py     short captions to long ones
    diffusion/
      flow.py         noising, targets, noise-level laws
      canvas.py       what is known of a clip and how much of it may change: (z, start)
      requests.py     canvases and prompts -> packed rows
      sampler.py      guidance and solvers in one lax.scan    (solvers.py: from one noise level to the next)
    train/
      loop.py         one loop: mesh, data, state, step, checkpoint, samples, preemption
      tasks.py        what each model gives the loop    (vae_task.py, captioner_task.py, expander_task.py, dit_task.py)
      optimizer.py    AdamW, Muon, schedules
      export.py       a workdir -> a model folder
      checkpoint.py   params, EMA, optimizer, rng, step and cursor as one atomic thing
    pod/            many devices
      mesh.py         five axes, one table of rules; imports nothing of the story, so that models may read it
      context.py      attention over a row that several devices hold
      hosts.py        processes begin together what they run together
      plan.py         a step compiled for TPUs that are not here    (steps.py, count.py, hlo.py, roofline.py, table.py)
      chips.py        the TPUs there are
    weights/        other people's checkpoints, by one table of names a family
      names.py        what a table is         (wan.py, wan_vae.py, umt5.py: the tables; published.py: the sizes)
      lora.py         a small change of a transformer: read, trained, written
      files.py        safetensors and torch.save's files, tensor by tensor, read as data
      convert.py      into a model folder, and back        (unigram.py: a tokenizer.json as a sentencepiece model)
      quant.py        matrices in 8 bits, to paint with
    evaluate/       metrics, what the world's oracle sees, two evaluations compared  (results.py), quality over compute

    import sora_jax
    model = sora_jax.load()
    model.generate("a red circle moves right", size=(96, 64), frames=17, seed=0).save("a.mp4")
"""

import importlib

__version__ = "0.1.0"
__all__ = ["Canvas", "InputError", "Model", "Video", "load", "read"]

_HOMES = {"load": "model", "Model": "model", "Video": "media", "read": "media"}
_HOMES |= {"Canvas": "diffusion.canvas", "InputError": "errors"}


def __getattr__(name: str):
    """The public names, imported when first asked for: `import sora_jax` itself imports nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sora_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sora_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
