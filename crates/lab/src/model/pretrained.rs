//! An encoder of a checkpoint as the body of a model.

use super::{Flow, Mixing, Pretrained, Trained};
use crate::Error;
use crate::batch::Batch;
use crate::task::{Facts, Input, Inputs, Targets};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regard::{Attention, Pass};
use regard_models::{Encoder, Folder};

/// The encoder that a configuration names, with this mixing inside.
pub(super) fn encoder(config: &Pretrained, mixing: &Mixing, facts: &Facts, device: &Device) -> Result<Encoder, Error> {
    check(mixing, facts)?;
    let open = || Encoder::read(&Folder::open(&config.folder())?, device);
    let encoder = open().map_err(|error| Error::key("model.from", error.to_string()))?;
    check_sizes(config, &encoder, facts)?;
    let encoder = match config.train {
        Trained::All => encoder,
        Trained::New => encoder.no_grad(),
    };
    let encoder = encoder.with_attention(Attention::full().mechanism(mixing.mechanism.clone()));
    Ok(match &mixing.reducer {
        Some(reducer) => encoder.with_reducer(reducer.clone()),
        None => encoder,
    })
}

fn check(mixing: &Mixing, facts: &Facts) -> Result<(), Error> {
    let refuse = |reason: &str| Err(Error::key("model.from", format!("{reason}, and the task is {}", facts.name)));
    Encoder::check(&mixing.mechanism).map_err(|error| Error::key(&mixing.name, error.to_string()))?;
    if mixing.penalty != 0.0 {
        return Err(Error::key(format!("{}.penalty", mixing.name), "inside an encoder no mechanism learns what a penalty steers"));
    }
    if mixing.causal {
        return Err(Error::key(format!("{}.causal", mixing.name), "an encoder lets every token see later ones"));
    }
    if mixing.reducer.as_ref().is_some_and(|reducer| reducer.about().tensors.contains(&"gate_logits")) {
        return Err(Error::key(&mixing.name, "it decides by a gate that it learns, which no checkpoint of an encoder has"));
    }
    if facts.causal {
        return refuse("an encoder lets every token see later ones");
    }
    match facts.targets {
        Targets::Classes(_) => Ok(()),
        _ => refuse("an encoder is given a head for classes"),
    }
}

fn check_sizes(config: &Pretrained, encoder: &Encoder, facts: &Facts) -> Result<(), Error> {
    let from = config.from.display();
    let Inputs::Tokens { vocabulary } = facts.inputs else {
        return Err(Error::key("model.from", format!("an encoder reads tokens, and the task {} shows features", facts.name)));
    };
    if vocabulary > encoder.vocabulary() {
        let message = format!("has {vocabulary} tokens, the model {from} has {}; write tokens: {{model: {from}}}", encoder.vocabulary());
        return Err(Error::key("task.tokens", message));
    }
    if facts.longest > encoder.limit() {
        let limit = encoder.limit();
        let message = format!("{} tokens, the model {from} has {limit} positions; write at most {limit}", facts.longest);
        return Err(Error::key("task.longest", message));
    }
    Ok(())
}

/// What an encoder makes of a batch.
pub(super) fn flow(encoder: &Encoder, batch: &Batch, pass: Pass) -> Result<Flow, Error> {
    let Input::Tokens(ids) = &batch.input else {
        return Err(Error::key("task", "its inputs are not those that the model was made for"));
    };
    let mut rest = &ids[..];
    let texts: Vec<&[u32]> = batch.lengths.iter().map(|&length| rest.split_off(..length).unwrap_or_default()).collect();
    let encoded = encoder.forward_in(&texts, pass)?;
    let loss = Tensor::zeros([1], &encoded.tokens.x().device());
    Ok(Flow {
        tokens: encoded.tokens,
        reduction: encoded.reduction,
        dimmed: None,
        loss,
        codes: Vec::new(),
        left: encoded.left,
        scores: None,
    })
}
