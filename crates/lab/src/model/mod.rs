//! A transformer with any mechanism and any reducer inside, for any task: tokens or features in, a class, tokens or numbers out.
//!
//! Sequences are packed, no padding is computed, and answers are computed where they are asked for only: with a vocabulary of thousands
//! and four questions in 64 tokens that is most of the work.
//!
//! The body is a stack of blocks of its own sizes, or an encoder of a checkpoint under a new norm and a new head. Names of parameters are
//! those that checkpoints have and that starts are drawn by, so a body adds its own beside the others'.

mod block;
mod config;
mod leaving;
mod outline;
mod pretrained;
mod start;

pub use block::{Block, Feed, Flow};
pub use config::{Gate, Mixing, ModelConfig, Pooling, Positions, Precision, Pretrained, Sizes, Trained};
pub use leaving::Leaving;
pub use outline::Outline;

use crate::Error;
use crate::batch::{Asked, Batch};
use crate::task::{Facts, Input, Inputs, Targets};
use block::{applied, normed};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use regard::rows::{self, Activation, Labels};
use regard::{Packed, Pass};
use regard_models::Encoder;

/// A model with its parameters.
#[derive(Module, Debug)]
pub struct Model {
    /// Of a checkpoint; tables, positions and blocks are its own then.
    pub encoder: Option<Encoder>,
    /// `[vocabulary, E]`, where inputs are tokens.
    pub tokens: Option<Embedding>,
    /// `[features, E]`, where inputs are rows of features.
    pub features: Option<Linear>,
    /// `[longest, E]`, where positions are learned.
    pub positions: Option<Embedding>,
    /// The layers.
    pub blocks: Vec<Block>,
    /// Behind them.
    pub norm: LayerNorm,
    /// `[E, answers]`; none where the table of embeddings serves.
    pub head: Option<Linear>,
    #[module(skip)]
    pooling: Pooling,
    #[module(skip)]
    longest: usize,
}

/// What a model says to a batch.
#[derive(Debug, Clone)]
pub struct Answers {
    /// One row for every answer that is asked for, `[answers, classes, tokens or numbers]`.
    pub said: Tensor<2>,
    /// Hidden states behind the last layer, and what mechanisms left.
    pub flow: Flow,
}

impl Model {
    /// A model for a task; every parameter is a function of the seed and its name, so that what configurations share starts alike.
    ///
    /// # Errors
    /// If a mechanism has no form for the task, an option is out of range, or a checkpoint does not fit the task.
    pub fn new(config: &ModelConfig, mixing: &Mixing, facts: &Facts, seed: u64, device: &Device) -> Result<Self, Error> {
        check(mixing, facts)?;
        device.seed(seed);
        match config {
            ModelConfig::Sizes(sizes) => Self::stacked(sizes, mixing, facts, seed, device),
            ModelConfig::Pretrained(config) => {
                let encoder = pretrained::encoder(config, mixing, facts, device)?;
                let head = Self::headed(config, encoder.width(), facts, device);
                Ok(Model { encoder: Some(encoder), ..start::started(head, config.deviation, seed) })
            }
        }
    }

    /// What stands on an encoder.
    fn headed(config: &Pretrained, width: usize, facts: &Facts, device: &Device) -> Self {
        Model {
            encoder: None,
            tokens: None,
            features: None,
            positions: None,
            blocks: Vec::new(),
            norm: norm(width, device),
            head: Some(LinearConfig::new(width, facts.targets.count()).init(device)),
            pooling: config.pooling,
            longest: facts.longest,
        }
    }

    fn stacked(config: &Sizes, mixing: &Mixing, facts: &Facts, seed: u64, device: &Device) -> Result<Self, Error> {
        check_tied(config, facts)?;
        let width = config.width;
        let embedding = |rows| EmbeddingConfig::new(rows, width).init(device);
        let (tokens, features) = match facts.inputs {
            Inputs::Tokens { vocabulary } => (Some(embedding(vocabulary)), None),
            Inputs::Rows { width: features } => (None, Some(LinearConfig::new(features, width).init(device))),
        };
        let answers = facts.targets.count();
        let model = Model {
            encoder: None,
            tokens,
            features,
            positions: (config.positions == Positions::Learned).then(|| embedding(facts.longest)),
            blocks: (0..config.layers).map(|at| Block::new(config, mixing, (at, facts.causal), device)).collect::<Result<_, _>>()?,
            norm: norm(width, device),
            head: (!config.tied).then(|| LinearConfig::new(width, answers).with_bias(config.bias).init(device)),
            pooling: config.pooling,
            longest: facts.longest,
        };
        Ok(start::started(model, config.deviation, seed))
    }

    /// The parameters of another model wherever both have one of that name; the others stay as they are.
    ///
    /// # Errors
    /// If one has another shape; it is named.
    pub fn adopt(self, other: &Model) -> Result<Self, Error> {
        let record = other.clone().into_record().allow_partial(true).allow_unused(true);
        self.try_load_record(record).map_err(|error| Error::key("start", error.to_string()))
    }

    /// E, the width of hidden states.
    pub fn width(&self) -> usize {
        self.norm.gamma.dims()[0]
    }

    /// What the layers make of a batch.
    ///
    /// # Errors
    /// If a sequence is longer than the model has positions, or the attention does not fit.
    pub fn flow(&self, batch: &Batch, pass: Pass, device: &Device) -> Result<Flow, Error> {
        if let Some(encoder) = &self.encoder {
            return pretrained::flow(encoder, batch, pass);
        }
        let tokens = Packed::new(self.embedded(batch, device)?, &batch.lengths)?;
        self.through(Flow::of(tokens), pass)
    }

    /// [`Model::flow`] with how much each token was attended to in each layer, for a model of its own sizes.
    ///
    /// # Errors
    /// As [`Model::flow`]; also if the mechanism has no received attention.
    pub fn attended(&self, batch: &Batch, device: &Device) -> Result<Flow, Error> {
        let tokens = Packed::new(self.embedded(batch, device)?, &batch.lengths)?;
        self.through(Flow { scores: Some(Vec::new()), ..Flow::of(tokens) }, Pass::default())
    }

    fn through(&self, flow: Flow, pass: Pass) -> Result<Flow, Error> {
        let tokens = flow.tokens.clone();
        let all = tokens.tokens();
        let turns = self.blocks[0].attention.turns(tokens.positions().iter().copied())?;
        let mut layers = self.blocks.iter().enumerate();
        layers.try_fold(flow, |flow, (at, block)| {
            // Behind a reducer the turns of all tokens fit no more, and the layer makes its own.
            let turns = turns.as_ref().filter(|_| flow.tokens.tokens() == all);
            block.forward(flow, turns, pass, at)
        })
    }

    fn embedded(&self, batch: &Batch, device: &Device) -> Result<Tensor<2>, Error> {
        let rows = batch.tokens();
        let x = match (&batch.input, &self.tokens, &self.features) {
            (Input::Tokens(ids), Some(table), _) => gathered(table.weight.val(), ids.iter().map(|&id| id as i32).collect(), device)?,
            (Input::Rows(values), _, Some(linear)) => {
                let width = linear.weight.dims()[0];
                applied(linear, Tensor::from_data(TensorData::new(values.clone(), [rows, width]), device), Activation::None)?
            }
            _ => return Err(Error::key("task", "its inputs are not those that the model was made for")),
        };
        let Some(table) = &self.positions else { return Ok(x) };
        if let Some(length) = batch.lengths.iter().find(|&&length| length > self.longest) {
            return Err(Error::key("task", format!("a sequence of {length} tokens, the model has {} positions", self.longest)));
        }
        let places = batch.lengths.iter().flat_map(|&length| 0..length as i32).collect();
        Ok(x + gathered(table.weight.val(), places, device)?)
    }

    /// What the model says wherever it is asked.
    ///
    /// # Errors
    /// As [`Model::flow`].
    pub fn answers(&self, batch: &Batch, pass: Pass, device: &Device) -> Result<Answers, Error> {
        let flow = self.flow(batch, pass, device)?;
        let hidden = match &batch.asked {
            Asked::Classes(_) => self.pooled(&flow, device),
            Asked::Tokens { rows, .. } | Asked::Values { rows, .. } if rows.len() == batch.tokens() => flow.tokens.x().clone(),
            Asked::Tokens { rows, .. } | Asked::Values { rows, .. } => {
                gathered(flow.tokens.x().clone(), rows.iter().map(|&row| row as i32).collect(), device)?
            }
        };
        let hidden = normed(&self.norm, hidden)?;
        let said = match (&self.head, &self.tokens) {
            (Some(head), _) => applied(head, hidden, Activation::None)?,
            (None, Some(table)) => rows::linear(hidden, table.weight.val().transpose(), None, Activation::None)?,
            (None, None) => return Err(Error::key("model.tied", "there is no table of tokens to answer with")),
        };
        Ok(Answers { said, flow })
    }

    /// A vector for every sequence, `[B, E]`: a product with the share that each token has in it.
    fn pooled(&self, flow: &Flow, device: &Device) -> Tensor<2> {
        let tokens = &flow.tokens;
        let (sequences, count) = (tokens.sequences(), tokens.tokens());
        let size = |row: usize| flow.reduction.as_ref().map_or(1.0, |reduction| reduction.sizes()[row]);
        let mut shares = vec![0.0f32; sequences * count];
        for (sequence, range) in tokens.ranges().enumerate().filter(|(_, range)| !range.is_empty()) {
            let shares = &mut shares[sequence * count..][..count];
            match self.pooling {
                Pooling::First => shares[range.start] = 1.0,
                Pooling::Last => shares[range.end - 1] = 1.0,
                Pooling::Mean => {
                    let total: f32 = range.clone().map(size).sum();
                    range.for_each(|row| shares[row] = size(row) / total);
                }
            }
        }
        Tensor::<2>::from_data(TensorData::new(shares, [sequences, count]), device).matmul(tokens.x().clone())
    }
}

impl Answers {
    /// The mean loss over answers, `[1]`: cross-entropy, or the squared error.
    ///
    /// # Errors
    /// If a label is not among the classes.
    pub fn loss(&self, asked: &Asked, smoothing: f32) -> Result<Tensor<1>, Error> {
        let device = self.said.device();
        let labels = match asked {
            Asked::Classes(labels) | Asked::Tokens { labels, .. } => labels,
            Asked::Values { values, .. } => {
                let wanted = Tensor::<2>::from_data(TensorData::new(values.clone(), self.said.dims()), &device);
                return Ok((self.said.clone() - wanted).powi_scalar(2).mean());
            }
        };
        let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
        let count = labels.len();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), &device);
        Ok(rows::cross_entropy(self.said.clone(), labels, Labels { smoothing, ..Labels::default() })?)
    }

    /// How far these answers are from a teacher's, `[1]`: `T² · KL(softmax(teacher / T) || softmax(said / T))`, the mean over answers. `T²`
    /// keeps gradients as large at every temperature (Hinton, Vinyals, Dean 2015).
    ///
    /// # Errors
    /// If the teacher gave other answers.
    pub fn divergence(&self, teacher: Tensor<2>, temperature: f32) -> Result<Tensor<1>, Error> {
        if teacher.dims() != self.said.dims() {
            let message = format!("the teacher's answers are {:?}, these {:?}", teacher.dims(), self.said.dims());
            return Err(Error::key("train.distil", message));
        }
        let taught = rows::log_softmax(teacher / temperature)?;
        let said = rows::log_softmax(self.said.clone() / temperature)?;
        Ok((taught.clone().exp() * (taught - said)).sum_dim(1).mean() * (temperature * temperature))
    }
}

fn norm(width: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(width).with_epsilon(f64::from(block::EPSILON)).init(device)
}

/// Refuses a mechanism or a reducer that has no form for a task.
pub(crate) fn check(mixing: &Mixing, facts: &Facts) -> Result<(), Error> {
    use regard_core::mechanism::Causality;
    let name = &mixing.name;
    let about = mixing.mechanism.about();
    let causal = facts.causal || mixing.causal;
    if about.causality == Causality::Required && !causal {
        let message =
            format!("{} is causal only, and the task {} is not; add causal: true to read it in one direction", about.name, facts.name);
        return Err(Error::key(name, message));
    }
    if about.causality == Causality::Never && causal {
        return Err(Error::key(name, format!("{} has no causal form, and the task {} needs one", about.name, facts.name)));
    }
    if mixing.reducer.is_some() && !matches!(facts.targets, Targets::Classes(_)) {
        return Err(Error::key(name, format!("a reducer removes tokens, and the task {} asks for an answer at each", facts.name)));
    }
    Ok(())
}

fn check_tied(config: &Sizes, facts: &Facts) -> Result<(), Error> {
    match (config.tied, facts.inputs, facts.targets) {
        (true, Inputs::Tokens { vocabulary }, Targets::Tokens(answers)) if vocabulary == answers => Ok(()),
        (true, ..) => Err(Error::key("model.tied", format!("the task {} does not answer in the tokens that it reads", facts.name))),
        (false, ..) => Ok(()),
    }
}

/// Rows of a table, `[count, E]`.
fn gathered(table: Tensor<2>, rows: Vec<i32>, device: &Device) -> Result<Tensor<2>, Error> {
    let count = rows.len();
    let rows = Tensor::<2, Int>::from_data(TensorData::new(rows, [1, count]), device);
    Ok(rows::embedding(table, rows)?.squeeze_dim(0))
}
