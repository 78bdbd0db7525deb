//! On Burn's CPU device: one operation, the kernels of the core forward and backward. Saved between them: q, k, v and the
//! biases (checkpointed), the output, and one f32 per query row, the log-sum-exp.

use super::rules::Rules;
use super::{Asked, Attention, Learned};
use crate::autodiff::{self, Operation, Parent, Parents, Step, flex_bool};
use crate::flex::{self, Fresh};
use crate::{Error, Tally};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor};
use regard_core::mechanism::{Choices, Gradients, Inputs, Plan};
use regard_core::reduce::Uniform;
use regard_core::{Output, Par, Problem, Saved, View, ViewMut, exact};
use std::borrow::Cow;
use std::sync::Arc;

/// Places of the parents.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const KEY_BIAS: usize = 3;
const BIAS: usize = 4;
const X: usize = 5;
const TYPE_LOGITS: usize = 6;
const THRESHOLD: usize = 7;
const GATES: usize = 8;
const MIX: usize = 9;
const PARENTS: usize = 10;

/// The operation.
#[derive(Debug, Clone)]
struct Fused {
    rules: Arc<Rules>,
    mask: Option<FlexTensor>,
    asked: Asked,
}

/// What the forward pass leaves.
#[derive(Debug, Clone)]
struct Left {
    o: FlexTensor,
    lse: Arc<[f32]>,
    choices: Arc<Choices>,
}

pub(super) fn attention(qkv: [Tensor<4>; 3], how: &Attention) -> Result<Tensor<4>, Error> {
    asked(qkv, how, Asked::default())
}

/// Attention that leaves the score of every key, `[B, M]`, or what was chosen, where it is asked for.
pub(super) fn asked([q, k, v]: [Tensor<4>; 3], how: &Attention, asked: Asked) -> Result<Tensor<4>, Error> {
    let operation = Fused { rules: how.rules.clone(), mask: how.mask.clone().and_then(flex_bool), asked };
    let heads = [q, k, v].map(|x| Some(Parent::from(x)));
    let biases = [how.key_bias.clone().map(Parent::from), how.bias.clone().map(Parent::from)];
    let Learned { x, type_logits, threshold, gates, mix } = how.learned.clone();
    let learned = [x.map(|x| x.unsqueeze_dim::<4>(1).into()), type_logits.map(Parent::from), threshold.map(Parent::from)];
    let [gates, mix] = [gates.map(Parent::from), mix.map(Parent::from)];
    let ([q, k, v], [key_bias, bias], [x, type_logits, threshold]) = (heads, biases, learned);
    autodiff::run(operation, [q, k, v, key_bias, bias, x, type_logits, threshold, gates, mix])
}

/// The score of every key, `[B, M]`, and what uniform attention would have given.
pub(crate) fn score(problem: &Problem<'_>, lse: &[f32]) -> Result<(Vec<f32>, Uniform), Error> {
    let dims = problem.dims();
    let mut received = vec![0.0; dims.batch * dims.heads * dims.keys];
    exact::received(problem, lse, &mut received, Par::default())?;
    let uniform = Uniform::new(problem, Par::default());
    let mut score = vec![0.0; dims.batch * dims.keys];
    uniform.score(&received, &mut score)?;
    Ok((score, uniform))
}

impl Attention {
    /// The problem that q and k come to with the first value of every key, on the CPU.
    ///
    /// # Errors
    /// If something does not fit, or the mechanism comes to no problem.
    pub(crate) fn with_problem<R>(&self, [q, k]: [&FlexTensor; 2], run: impl FnOnce(&Problem<'_>) -> Result<R, Error>) -> Result<R, Error> {
        let [q, k] = [flex::view(q, "q")?, flex::view(k, "k")?];
        let [batch, kv_heads, keys, _] = k.shape();
        let v = k.part([0; 4], [batch, kv_heads, keys, 1])?;
        let key_bias: Option<Vec<f32>> = self.key_bias.clone().map(|bias| bias.into_data().iter::<f32>().collect());
        let mask = self.mask.clone().and_then(flex_bool);
        let mut inputs = self.rules.inputs([q, k, v]);
        if let Some(mask) = &mask {
            inputs.sight = inputs.sight.mask(flex::mask(mask)?);
        }
        inputs.key_bias = key_bias.as_deref();
        let mechanism = self.rules.mechanism()?;
        let choices = mechanism.choose(&inputs, self.rules.pass(), Par::default())?;
        let plan = mechanism.plan(&inputs, &choices, self.rules.pass())?;
        let missing = || regard_core::Error::Combination(format!("{} has no received attention", mechanism.about().name));
        run(plan.problem().ok_or_else(missing)?)
    }
}

/// What kernels borrow from the parents: small ones as one slice each, dense biases in a type they take.
struct Borrowed<'a> {
    parents: &'a Parents<PARENTS>,
    key_bias: Option<Cow<'a, [f32]>>,
    type_logits: Option<Cow<'a, [f32]>>,
    threshold: Option<Cow<'a, [f32]>>,
    mix: Option<Cow<'a, [f32]>>,
    bias: Option<FlexTensor>,
}

impl<'a> Borrowed<'a> {
    fn new(parents: &'a Parents<PARENTS>) -> Self {
        let bias = parents[BIAS].clone().map(|bias| {
            if flex::takes(bias.dtype()) {
                return bias;
            }
            Tally::add(|tally| tally.copies += 1);
            flex::cast(bias, DType::F32)
        });
        let flat = [KEY_BIAS, TYPE_LOGITS, THRESHOLD, MIX].map(|at| parents[at].as_ref().map(flex::flat));
        let [key_bias, type_logits, threshold, mix] = flat;
        Borrowed { parents, key_bias, type_logits, threshold, mix, bias }
    }

    fn parent(&self, at: usize, tensor: &'static str) -> Result<View<'_>, Error> {
        flex::view(present(self.parents, at), tensor)
    }

    fn inputs(&'a self, operation: &'a Fused) -> Result<Inputs<'a>, Error> {
        let qkv = [self.parent(Q, "q")?, self.parent(K, "k")?, self.parent(V, "v")?];
        let mut inputs = operation.rules.inputs(qkv);
        if let Some(mask) = &operation.mask {
            inputs.sight = inputs.sight.mask(flex::mask(mask)?);
        }
        inputs.key_bias = self.key_bias.as_deref();
        inputs.type_logits = self.type_logits.as_deref();
        inputs.threshold = self.threshold.as_deref();
        inputs.mix = self.mix.as_deref();
        inputs.x = self.parents[X].as_ref().map(|x| flex::view(x, "x")).transpose()?;
        inputs.gates = self.parents[GATES].as_ref().map(|gates| flex::view(gates, "gates")).transpose()?;
        inputs.bias = self.bias.as_ref().map(|bias| flex::view(bias, "bias")).transpose()?;
        Ok(inputs)
    }
}

impl Operation<PARENTS> for Fused {
    type Saved = Left;

    fn reads(&self, _tracked: [bool; PARENTS]) -> [bool; PARENTS] {
        [true; PARENTS]
    }

    fn forward(&self, parents: &Parents<PARENTS>, keep: bool) -> Result<(FlexTensor, Left), Error> {
        let borrowed = Borrowed::new(parents);
        let inputs = borrowed.inputs(self)?;
        let [batch, heads, queries, _] = inputs.q.shape();
        let mut o = Fresh::like(present(parents, Q), [batch, heads, queries, inputs.v.shape()[3]]);
        let keep = keep || self.asked.scores.is_some();
        let mut lse = vec![0.0; if keep { batch * heads * queries } else { 0 }];
        let mut out = Output { o: o.view_mut("o")?, lse: keep.then_some(&mut lse) };
        let (mechanism, pass) = (self.rules.mechanism()?, self.rules.pass());
        let choices = mechanism.choose(&inputs, pass, Par::default())?;
        let plan = mechanism.plan(&inputs, &choices, pass)?;
        plan.forward(&mut out, Par::default())?;
        if let Some(scores) = &self.asked.scores {
            let missing = || regard_core::Error::Combination(format!("{} has no received attention", mechanism.about().name));
            let (score, _) = score(plan.problem().ok_or_else(missing)?, &lse)?;
            scores.get_or_init(|| score);
        }
        if let Some(traces) = &self.asked.traces {
            traces.get_or_init(|| plan.traces());
        }
        let o = o.into_tensor();
        Ok((o.clone(), Left { o, lse: lse.into(), choices: Arc::new(choices) }))
    }

    fn backward(&self, step: Step<Self, PARENTS>, wanted: [bool; PARENTS]) -> Result<Parents<PARENTS>, Error> {
        let borrowed = Borrowed::new(&step.parents);
        let inputs = borrowed.inputs(self)?;
        let saved = Saved { o: flex::view(&step.saved.o, "o")?, lse: &step.saved.lse, d_o: flex::view(&step.gradient, "do")? };
        let plan = self.rules.mechanism()?.plan(&inputs, &step.saved.choices, self.rules.pass())?;
        let mut wished = Wished::new(&step.parents, wanted);
        wished.drop_constants(&plan.gradients());
        plan.backward(&saved, &mut wished.gradients()?, Par::default())?;
        Ok(wished.into_tensors(&step.parents))
    }
}

/// Parents whose gradients are tensors, and those whose gradients are slices.
const TENSORS: [usize; 5] = [Q, K, V, X, GATES];
const SLICES: [usize; 5] = [KEY_BIAS, BIAS, TYPE_LOGITS, THRESHOLD, MIX];

/// Memory for the gradients that are wanted.
struct Wished {
    tensors: [Option<Fresh>; 5],
    slices: [Option<Vec<f32>>; 5],
    /// Parents that only chose: their gradient is zero, which the graph still waits for.
    constants: Vec<usize>,
}

impl Wished {
    fn new(parents: &Parents<PARENTS>, wanted: [bool; PARENTS]) -> Self {
        let parent = |at: usize| parents[at].as_ref().filter(|_| wanted[at]);
        let tensors = TENSORS.map(|at| parent(at).map(|x| Fresh::like(x, dims(x))));
        let slices = SLICES.map(|at| parent(at).map(|x| vec![0.0; x.layout().num_elements()]));
        Wished { tensors, slices, constants: Vec::new() }
    }

    /// Does not ask for gradients that the plan does not have.
    fn drop_constants(&mut self, has: &[&str]) {
        let [.., x, gates] = &mut self.tensors;
        let [.., type_logits, threshold, mix] = &mut self.slices;
        for (at, tensor, name) in [(X, x, "dx"), (GATES, gates, "dgates")] {
            if !has.contains(&name) && tensor.take().is_some() {
                self.constants.push(at);
            }
        }
        for (at, slice, name) in [(TYPE_LOGITS, type_logits, "dtype_logits"), (THRESHOLD, threshold, "dthreshold"), (MIX, mix, "dmix")] {
            if !has.contains(&name) && slice.take().is_some() {
                self.constants.push(at);
            }
        }
    }

    fn gradients(&mut self) -> Result<Gradients<'_>, Error> {
        let [dq, dk, dv, dx, dgates] = &mut self.tensors;
        let [dkey_bias, dbias, dtype_logits, dthreshold, dmix] = &mut self.slices;
        let heads = regard_core::Gradients {
            dq: written(dq, "dq")?,
            dk: written(dk, "dk")?,
            dv: written(dv, "dv")?,
            dkey_bias: dkey_bias.as_deref_mut(),
            dbias: dbias.as_deref_mut(),
        };
        let [dtype_logits, dthreshold, dmix] = [dtype_logits, dthreshold, dmix].map(Option::as_deref_mut);
        Ok(Gradients { heads, dx: written(dx, "dx")?, dtype_logits, dthreshold, dgates: written(dgates, "dgates")?, dmix })
    }

    fn into_tensors(self, parents: &Parents<PARENTS>) -> Parents<PARENTS> {
        let mut all = [const { None }; PARENTS];
        for (at, tensor) in TENSORS.into_iter().zip(self.tensors) {
            all[at] = tensor.map(Fresh::into_tensor);
        }
        for (at, values) in SLICES.into_iter().zip(self.slices) {
            all[at] = values.zip(parents[at].as_ref()).map(|(values, x)| flex::tensor(values, x.layout().shape(), x.dtype()));
        }
        for at in self.constants {
            let zeros = |x: &FlexTensor| flex::tensor(vec![0.0; x.layout().num_elements()], x.layout().shape(), x.dtype());
            all[at] = parents[at].as_ref().map(zeros);
        }
        all
    }
}

fn written<'a>(x: &'a mut Option<Fresh>, tensor: &'static str) -> Result<Option<ViewMut<'a>>, Error> {
    x.as_mut().map(|x| x.view_mut(tensor)).transpose()
}

fn present(parents: &Parents<PARENTS>, at: usize) -> &FlexTensor {
    parents[at].as_ref().expect("q, k and v are always there")
}

fn dims(x: &FlexTensor) -> [usize; 4] {
    let shape = x.layout().shape();
    [shape[0], shape[1], shape[2], shape[3]]
}
