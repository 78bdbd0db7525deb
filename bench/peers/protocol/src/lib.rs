//! How the measuring program talks to a library: JSON lines, one request on stdin, one reply on stdout.
//!
//! | request | reply |
//! |---|---|
//! | `{"op":"hello"}` | `{"name":…, "level":…}` |
//! | `{"op":"load","file":PATH}` | `{}`; reads `q k v` and, if there, `do` (safetensors, f32 or bf16), `key_bias` (f32), `until`, `offsets` (i64) |
//! | `{"op":"forward"\|"backward"\|"decode", "causal":…, "threads":…, "repeat":…, "rule":…, "tokens_first":…}` | `{"seconds":…}`, the mean of `repeat` calls |
//! | `{"op":"write","file":PATH}` | `{}`; writes `o` of the last pass and, after `backward`, `dq dk dv` |
//! | `{"op":"ceilings","threads":…}` | `{"fma_gflops":…, "bf16_gflops":…, "read_gbps":…}`, `null` where unknown |
//!
//! `rule` is `"plain"` (the default), `"key_bias"`, `{"window":KEYS}`, `"lifetimes"`, `"segments"` or `{"mechanism":"hyper:bits=7"}`, see [`Rule`].
//! With `tokens_first` all tensors, read and written, are `[B, N, H, D]`.
//! `backward` is forward and backward together. A request that fails is answered `{"error":…}` and the program goes on.
//! Only the pass itself is timed: buffers are allocated and inputs are laid out while loading.

mod file;
mod serve;
mod tensor;

pub use file::{Inputs, Side};
pub use serve::{Call, Ceilings, Engine, Pass, Rule, seconds_per_call, serve};
pub use tensor::{Aligned, Data, Tensor};

/// What went wrong, in words that the measuring program prints.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
