//! Transformers with any attention inside, from checkpoints as Hugging Face writes them: encoders of the BERT family.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use regard_models::{Folder, Pooling, TextEncoder};
//!
//! let model = TextEncoder::open(&Folder::find("sentence-transformers/all-MiniLM-L6-v2")?, &Device::flex())?;
//! let texts = model.tokenizer.encode(&["A text.", "A longer text."])?;
//! let vectors = model.vectors(&texts, Pooling::Mean, true)?; // 2 · 384 floats
//! # Ok::<(), regard_models::Error>(())
//! ```

mod checkpoint;
mod encoder;
mod error;
mod folder;
mod map;
mod text;
mod tokens;

pub use encoder::{Attended, Encoded, Encoder, Pooling, pool};
pub use error::Error;
pub use folder::Folder;
pub use regard::Attention;
pub use text::TextEncoder;
pub use tokens::{Tokenizer, Tokens, batches};

/// Burn's CPU device, where the fused kernels run.
pub fn cpu() -> burn::tensor::Device {
    burn::tensor::Device::flex()
}
