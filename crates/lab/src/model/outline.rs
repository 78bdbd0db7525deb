//! A model apart from its run: what it is in a few lines of JSON, and its weights in a file of safetensors, half precision.

use super::{Mixing, Model, ModelConfig};
use crate::Error;
use crate::section::Section;
use crate::task::{Facts, Inputs, Metric, Targets};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a language model is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outline {
    /// What stands under `model`.
    pub model: Map<String, Value>,
    /// What stands under `attention`.
    pub attention: Value,
    /// Tokens that it knows, a mask included.
    pub vocabulary: usize,
    /// Tokens of the longest text.
    pub longest: usize,
    /// Whether it reads in one direction.
    pub causal: bool,
}

impl Outline {
    /// The model with parameters as they start.
    ///
    /// # Errors
    /// If a key is unknown or a value out of its range.
    pub fn model(&self, device: &Device) -> Result<Model, Error> {
        let config = ModelConfig::read(Section::new("model", self.model.clone()))?;
        let facts = Facts {
            name: "language",
            inputs: Inputs::Tokens { vocabulary: self.vocabulary },
            targets: Targets::Tokens(self.vocabulary),
            metric: Metric::Loss,
            causal: self.causal,
            longest: self.longest,
            sizes: [None; 3],
            balance: Vec::new(),
            floor: None,
            fingerprint: String::new(),
        };
        Model::new(&config, &Mixing::read("attention", &self.attention)?, &facts, 0, device)
    }
}

impl Model {
    /// Its parameters as a file of safetensors in f16, names as checkpoints have them.
    ///
    /// # Errors
    /// If the format refuses one.
    pub fn weights(&self) -> Result<Vec<u8>, Error> {
        let mut all = Collect::default();
        self.visit(&mut all);
        let views = all.tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)));
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        let written = views.and_then(|views| safetensors::serialize(views, None));
        written.map_err(|error| Error::key("weights", error.to_string()))
    }

    /// The parameters of such a file.
    ///
    /// # Errors
    /// If one is missing, or has another shape.
    pub fn with_weights(self, bytes: &[u8]) -> Result<Self, Error> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| Error::key("weights", error.to_string()))?;
        let mut place = Place { tensors, path: Vec::new(), wrong: None };
        let model = self.map(&mut place);
        place.wrong.map_or(Ok(model), |(name, message)| Err(Error::key(name, message)))
    }
}

#[derive(Default)]
struct Collect {
    path: Vec<String>,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let bytes = param.val().into_data().iter::<f32>().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
        self.tensors.push((self.path.join("."), param.dims().to_vec(), bytes));
    }
}

struct Place<'a> {
    tensors: SafeTensors<'a>,
    path: Vec<String>,
    wrong: Option<(String, String)>,
}

impl Place<'_> {
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let tensor = self.tensors.tensor(name).map_err(|_| "is not among the weights".to_owned())?;
        if tensor.dtype() != Dtype::F16 || tensor.shape() != shape {
            return Err(format!("is {:?} {:?} among the weights, F16 {shape:?} in the model", tensor.dtype(), tensor.shape()));
        }
        Ok(tensor.data().chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect())
    }
}

impl ModuleMapper for Place<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (name, shape) = (self.path.join("."), param.dims());
        match self.values(&name, &shape) {
            Ok(values) => param.map(|old| Tensor::from_data(TensorData::new(values, shape), &old.device())),
            Err(message) => {
                self.wrong.get_or_insert((name, message));
                param
            }
        }
    }
}
