//! On Burn's CPU device: one operation, the kernels of the core forward and backward. Saved between them: q, k, v and the
//! biases (checkpointed), the output, and one f32 per query row, the log-sum-exp.

use super::Attention;
use super::rules::Rules;
use crate::autodiff::{self, Operation, Parent, Parents, Step, flex_bool};
use crate::flex::{self, Fresh};
use crate::{Error, Tally};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor};
use regard_core::mechanism::Inputs;
use regard_core::{Gradients, Output, Par, Saved, View, ViewMut};
use std::borrow::Cow;
use std::sync::Arc;

/// Places of the parents.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const KEY_BIAS: usize = 3;
const BIAS: usize = 4;
const PARENTS: usize = 5;

/// The operation.
#[derive(Debug, Clone)]
struct Fused {
    rules: Arc<Rules>,
    mask: Option<FlexTensor>,
}

/// What the forward pass leaves.
#[derive(Debug, Clone)]
struct Left {
    o: FlexTensor,
    lse: Arc<[f32]>,
}

pub(super) fn attention([q, k, v]: [Tensor<4>; 3], how: &Attention) -> Result<Tensor<4>, Error> {
    let operation = Fused { rules: how.rules.clone(), mask: how.mask.clone().and_then(flex_bool) };
    let biases = [how.key_bias.clone().map(Parent::from), how.bias.clone().map(Parent::from)];
    let [key_bias, bias] = biases;
    autodiff::run(operation, [Some(q.into()), Some(k.into()), Some(v.into()), key_bias, bias])
}

/// What kernels borrow from the parents: key biases as one slice, dense biases in a type they take.
struct Borrowed<'a> {
    parents: &'a Parents<PARENTS>,
    key_bias: Option<Cow<'a, [f32]>>,
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
        Borrowed { parents, key_bias: parents[KEY_BIAS].as_ref().map(flex::flat), bias }
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
        let mut lse = vec![0.0; if keep { batch * heads * queries } else { 0 }];
        let mut out = Output { o: o.view_mut("o")?, lse: keep.then_some(&mut lse) };
        self.rules.mechanism()?.forward(&inputs, self.rules.pass(), &mut out, Par::default())?;
        let o = o.into_tensor();
        Ok((o.clone(), Left { o, lse: lse.into() }))
    }

    fn backward(&self, step: Step<Self, PARENTS>, wanted: [bool; PARENTS]) -> Result<Parents<PARENTS>, Error> {
        let borrowed = Borrowed::new(&step.parents);
        let inputs = borrowed.inputs(self)?;
        let saved = Saved { o: flex::view(&step.saved.o, "o")?, lse: &step.saved.lse, d_o: flex::view(&step.gradient, "do")? };
        let mut wished = Wished::new(&step.parents, wanted);
        self.rules.mechanism()?.backward(&inputs, self.rules.pass(), &saved, &mut wished.gradients()?, Par::default())?;
        Ok(wished.into_tensors(&step.parents))
    }
}

/// Memory for the gradients that are wanted.
struct Wished {
    heads: [Option<Fresh>; 3],
    biases: [Option<Vec<f32>>; 2],
}

impl Wished {
    fn new(parents: &Parents<PARENTS>, wanted: [bool; PARENTS]) -> Self {
        let parent = |at: usize| parents[at].as_ref().filter(|_| wanted[at]);
        let heads = [Q, K, V].map(|at| parent(at).map(|x| Fresh::like(x, dims(x))));
        let biases = [KEY_BIAS, BIAS].map(|at| parent(at).map(|x| vec![0.0; x.layout().num_elements()]));
        Wished { heads, biases }
    }

    fn gradients(&mut self) -> Result<Gradients<'_>, Error> {
        let [dq, dk, dv] = &mut self.heads;
        let [dkey_bias, dbias] = &mut self.biases;
        Ok(Gradients {
            dq: written(dq, "dq")?,
            dk: written(dk, "dk")?,
            dv: written(dv, "dv")?,
            dkey_bias: dkey_bias.as_deref_mut(),
            dbias: dbias.as_deref_mut(),
        })
    }

    fn into_tensors(self, parents: &Parents<PARENTS>) -> Parents<PARENTS> {
        let like = |values: Option<Vec<f32>>, at: usize| {
            let (values, x) = (values?, parents[at].as_ref()?);
            Some(flex::tensor(values, x.layout().shape(), x.dtype()))
        };
        let ([dq, dk, dv], [dkey_bias, dbias]) = (self.heads, self.biases);
        let head = |x: Option<Fresh>| x.map(Fresh::into_tensor);
        [head(dq), head(dk), head(dv), like(dkey_bias, KEY_BIAS), like(dbias, BIAS)]
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
