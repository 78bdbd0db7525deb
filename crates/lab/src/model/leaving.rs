//! Which tokens leave behind a layer: a reducer, with what it learns. In training what is learned leaves every token in place and takes some of its
//! weight; afterwards tokens are really removed.
//!
//! A learned threshold adds `penalty · mean m` to the loss (Kim et al. 2022). A deletion gate adds `a · mean G / |k|` with `a = penalty · (target_rate -
//! rate)`, where `rate` is the share of the batch's tokens with negative logits: the proportional part of the controller of Kallini et al. 2024,
//! the integral being state that a run would have to go on with. At the start nothing is deleted.

use super::{Flow, Mixing};
use crate::Error;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use regard::Pass;
use regard::modules::{DeletionGate, PruneThresholds};
use regard::reduce::{Prune, Reducer, Reduction, Shown, reduce};
use regard_core::reduce::Rule;

/// Logit of every token at the start: not deleted.
const STAYS: f32 = 3.0;

/// A reducer behind one layer.
#[derive(Module, Debug)]
pub struct Leaving {
    /// Of scores, where the rule is learned.
    pub thresholds: Option<PruneThresholds>,
    /// Of deletion.
    pub gate: Option<DeletionGate>,
    #[module(skip)]
    reducer: Reducer,
    #[module(skip)]
    penalty: f32,
}

impl Leaving {
    /// What leaves behind layer `at` of width E; nothing does where the reducer is not for it.
    pub(super) fn new(mixing: &Mixing, at: usize, width: usize, device: &Device) -> Result<Option<Self>, Error> {
        let Some(reducer) = mixing.reducer.clone().filter(|reducer| reducer.acts(at)) else { return Ok(None) };
        let (mut thresholds, mut gate) = (None, None);
        match &reducer {
            Reducer::Prune(prune) if prune.rule == Some(Rule::Learned) => {
                let own = Prune { threshold: prune.threshold.at(at).into(), ..prune.clone() };
                thresholds = Some(PruneThresholds::new(own, 1, device)?);
            }
            Reducer::DeleteGate(options) => gate = Some(open(DeletionGate::new(options.clone(), width, device)?)),
            _ => (),
        }
        Ok(Some(Leaving { thresholds, gate, reducer, penalty: mixing.penalty }))
    }

    /// Who decides, and is shown what it reads.
    pub(super) fn reducer(&self) -> &Reducer {
        &self.reducer
    }

    /// The tokens that go on behind layer `at`.
    pub(super) fn apply(&self, flow: Flow, mut shown: Shown, pass: Pass, at: usize) -> Result<Flow, Error> {
        if let Some(gate) = &self.gate {
            let gates = gate.gates(&flow.tokens)?;
            if pass.training {
                let options = gate.reducer();
                let deleted = gates.logits.clone().lower_scalar(0.0).float().mean().into_scalar::<f32>();
                let a = self.penalty * (options.target_rate - deleted);
                let loss = flow.loss + gates.open.clone().mean() * (a / options.k.abs());
                return Ok(Flow { loss, dimmed: Some(gates.open), ..flow });
            }
            shown.gate_logits = Some(gates.logits);
        }
        let Some(thresholds) = &self.thresholds else { return reduced(flow, &self.reducer, &shown, at) };
        match shown.score {
            Some(score) if pass.training => {
                let soft = thresholds.soft(flow.tokens, score, 0)?;
                Ok(Flow { tokens: soft.tokens, loss: flow.loss + soft.penalty * self.penalty, ..flow })
            }
            _ => reduced(flow, &thresholds.reducer().into(), &shown, at),
        }
    }
}

/// A gate that deletes nothing yet.
fn open(mut gate: DeletionGate) -> DeletionGate {
    let set = |param: Param<Tensor<1>>| param.map(|old| (old.zeros_like() + STAYS).set_require_grad(old.is_require_grad()));
    gate.linear.bias = gate.linear.bias.map(set);
    gate.linear.weight = gate.linear.weight.map(|old| old.zeros_like().set_require_grad(old.is_require_grad()));
    gate
}

fn reduced(flow: Flow, reducer: &Reducer, shown: &Shown, layer: usize) -> Result<Flow, Error> {
    let reduced = reduce(reducer, &flow.tokens, shown, layer)?;
    let reduction: Reduction = match &flow.reduction {
        Some(earlier) => reduced.reduction.after(earlier).map_err(regard::Error::from)?,
        None => reduced.reduction,
    };
    Ok(Flow { tokens: reduced.tokens, reduction: Some(reduction), ..flow })
}
