//! Training steps of a small language model, made of Regard's layer and row operations or, with `--plain`, of Burn's modules.
//!
//! Vocabulary 256, 4 pre-norm layers of width 128 with 4 heads and an MLP of 512 (GELU), learned positions, 12 sequences of 256
//! tokens, AdamW. Tokens follow `next = 5·last + 3 + noise mod 256`, noise in 0..4, so the loss falls towards ln 4. Both
//! models start from the same parameters and see the same tokens; a step is timed from the batch to the updated parameters.
//!
//! `cargo run --release -p regard --example training_step -- --steps 20 [--plain]` prints `{"seconds":[…],"losses":[…]}`;
//! with `--serve` in place of `--steps N` every line `step` on stdin is answered by `{"seconds":…,"loss":…}`.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use regard::optim::AdamW;
use regard::rows::{self, Activation, Labels};
use regard::{Attention, AttentionLayer, AttentionLayerConfig, Error};
use std::io::{BufRead, Write};
use std::time::Instant;

/// A step makes and drops a few hundred megabytes of tensors. The system's allocator hands memory back in between, mimalloc does so
/// after ten milliseconds, and every step then asks for it again, page by page: here it is kept for ten seconds.
#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCABULARY: usize = 256;
const LAYERS: usize = 4;
const WIDTH: usize = 128;
const HEADS: usize = 4;
const BATCH: usize = 12;
const TOKENS: usize = 256;
const RATE: f64 = 1e-3;
const DECAY: f32 = 0.01;
/// ε of the norms, Burn's default.
const EPSILON: f32 = 1e-5;

/// Whose attention it is; the rest of the model follows.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are four of them, and a boxed module is none")]
enum Mixer {
    Regard(AttentionLayer),
    Plain(MultiHeadAttention),
}

#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    mixer: Mixer,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Model {
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Block {
    fn new(plain: bool, device: &Device) -> Result<Self, Error> {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let mixer = if plain {
            Mixer::Plain(MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0).init(device))
        } else {
            Mixer::Regard(AttentionLayerConfig::new(WIDTH, HEADS).init(device)?.attention(Attention::causal()))
        };
        let up = LinearConfig::new(WIDTH, 4 * WIDTH).init(device);
        let down = LinearConfig::new(4 * WIDTH, WIDTH).init(device);
        Ok(Block { norm: norm(), mixer, mlp_norm: norm(), up, down })
    }

    fn forward(&self, x: Tensor<3>, hidden: &Tensor<3, Bool>) -> Result<Tensor<3>, Error> {
        match &self.mixer {
            Mixer::Regard(attention) => {
                let x = x.clone() + attention.forward(norm(&self.norm, x)?)?;
                let inner = linear(&self.up, norm(&self.mlp_norm, x.clone())?, Activation::Gelu)?;
                Ok(x + linear(&self.down, inner, Activation::None)?)
            }
            Mixer::Plain(attention) => {
                let input = MhaInput::self_attn(self.norm.forward(x.clone())).mask_attn(hidden.clone());
                let x = x + attention.forward(input).context;
                let inner = Gelu::new().forward(self.up.forward(self.mlp_norm.forward(x.clone())));
                Ok(x + self.down.forward(inner))
            }
        }
    }
}

impl Model {
    fn new(plain: bool, device: &Device) -> Result<Self, Error> {
        let embedding = |entries| EmbeddingConfig::new(entries, WIDTH).init(device);
        Ok(Model {
            tokens: embedding(VOCABULARY),
            positions: embedding(TOKENS),
            blocks: (0..LAYERS).map(|_| Block::new(plain, device)).collect::<Result<_, Error>>()?,
            norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, VOCABULARY).init(device),
        })
    }

    fn plain(&self) -> bool {
        matches!(self.blocks[0].mixer, Mixer::Plain(_))
    }

    /// The mean loss of `ids [B, N]` against `labels [B·N]`.
    fn loss(&self, ids: Tensor<2, Int>, labels: Tensor<1, Int>, hidden: &Tensor<3, Bool>) -> Result<Tensor<1>, Error> {
        let embedded = if self.plain() { self.tokens.forward(ids) } else { rows::embedding(self.tokens.weight.val(), ids)? };
        let x = embedded + self.positions.weight.val().unsqueeze::<3>();
        let x = self.blocks.iter().try_fold(x, |x, block| block.forward(x, hidden))?;
        let x = x.reshape([BATCH * TOKENS, WIDTH]);
        if self.plain() {
            let loss = CrossEntropyLossConfig::new().init(&x.device());
            return Ok(loss.forward(self.head.forward(self.norm.forward(x)), labels));
        }
        rows::cross_entropy(linear(&self.head, norm(&self.norm, x)?, Activation::None)?, labels, Labels::default())
    }
}

fn norm<const D: usize>(norm: &LayerNorm, x: Tensor<D>) -> Result<Tensor<D>, Error> {
    rows::layer_norm(x, norm.gamma.val(), norm.beta.as_ref().map(|beta| beta.val()), EPSILON)
}

fn linear<const D: usize>(linear: &Linear, x: Tensor<D>, f: Activation) -> Result<Tensor<D>, Error> {
    rows::linear(x, linear.weight.val(), linear.bias.as_ref().map(|bias| bias.val()), f)
}

/// Batches without end (xorshift).
struct Text(u64);

impl Text {
    fn draw(&mut self, below: u64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % below) as i64
    }

    /// Tokens and what follows each, both `[B·N]`.
    fn batch(&mut self) -> [Vec<i64>; 2] {
        let (mut ids, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            let mut token = self.draw(VOCABULARY as u64);
            for _ in 0..TOKENS {
                ids.push(token);
                token = (5 * token + 3 + self.draw(4)) % VOCABULARY as i64;
                labels.push(token);
            }
        }
        [ids, labels]
    }
}

struct Training {
    device: Device,
    /// `None` only while a step is under way.
    model: Option<Model>,
    optimizer: ModuleOptimizer,
    text: Text,
    /// True where Burn's attention may not look.
    hidden: Tensor<3, Bool>,
}

impl Training {
    fn new(plain: bool) -> Result<Self, Error> {
        let device = Device::flex().autodiff();
        device.seed(0);
        Ok(Training {
            model: Some(Model::new(plain, &device)?),
            optimizer: if plain { plain_optimizer() } else { AdamW { decay: DECAY, vector_decay: DECAY, ..AdamW::default() }.init() },
            text: Text(1),
            hidden: generate_autoregressive_mask(BATCH, TOKENS, &device),
            device,
        })
    }

    /// Seconds and loss of a step.
    fn step(&mut self) -> Result<(f64, f32), Error> {
        let [ids, labels] = self.text.batch();
        let start = Instant::now();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [BATCH, TOKENS]), &self.device);
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [BATCH * TOKENS]), &self.device);
        let model = self.model.take().expect("the last step put it back");
        let loss = model.loss(ids, labels, &self.hidden)?;
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        self.model = Some(self.optimizer.step(RATE, model, gradients));
        let loss = loss.into_scalar::<f32>();
        Ok((start.elapsed().as_secs_f64(), loss))
    }
}

/// Burn's AdamW with the defaults of ours.
fn plain_optimizer() -> ModuleOptimizer {
    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(DECAY).init()
}

/// Answers every line `step` until stdin ends.
fn serve(mut training: Training) -> Result<(), Box<dyn std::error::Error>> {
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "step" => {
                let (seconds, loss) = training.step()?;
                writeln!(stdout, "{{\"seconds\":{seconds},\"loss\":{loss}}}")?;
            }
            other => writeln!(stdout, "{{\"error\":\"{other:?} is not step\"}}")?,
        }
        stdout.flush()?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: the option (how many milliseconds freed memory is kept) is a number, set before there is a second thread.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(15, 10_000);
    }
    regard::on_pool(|| run().map_err(|error| error.to_string())).map_err(Into::into)
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut training = Training::new(arguments.iter().any(|argument| argument == "--plain"))?;
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve(training);
    }
    let at = arguments.iter().position(|argument| argument == "--steps");
    let steps = at.and_then(|at| arguments.get(at + 1)).map_or(Ok(10), |steps| steps.parse())?;
    let (seconds, losses): (Vec<f64>, Vec<f32>) = (0..steps).map(|_| training.step()).collect::<Result<_, Error>>()?;
    println!("{{\"seconds\":{seconds:?},\"losses\":{losses:?}}}");
    Ok(())
}
