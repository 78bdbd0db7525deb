//! How near an encoder without training stays to itself under other mechanisms and reducers, and how fast it gets.
//!
//! `approximation MODEL TEXTS.json SETTINGS.json RUNS TOKENS`: texts are a list of strings, cut to the model's limit; settings a list of
//! `{"name", "mechanism"?, "reducer"?, "set": {"option": "value"}}`. One JSON line per setting: the cosine of every text's vector to that of
//! exact attention (mean, lowest), tokens per second (median of `RUNS` rounds, all settings in turns, tokenizing left out), and the shares of
//! tokens that leave each layer. Batches have at most `TOKENS` tokens.

use regard::mechanism::Mechanism;
use regard::reduce::Reducer;
use regard_models::{Attention, Folder, Pooling, TextEncoder, Tokens, batches, cpu, pool};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    Ok(regard::on_pool(|| run().map_err(|error| error.to_string()))?)
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, settings, runs, most] = &arguments[..] else {
        return Err("MODEL TEXTS.json SETTINGS.json RUNS TOKENS".into());
    };
    let (runs, most): (usize, usize) = (runs.parse()?, most.parse()?);
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(texts)?)?;
    let settings: Vec<Value> = serde_json::from_slice(&std::fs::read(settings)?)?;
    let open = || Ok::<_, Box<dyn Error>>(TextEncoder::open(&Folder::open(Path::new(model))?, &cpu())?);
    let exact = open()?;
    let tokens = exact.tokenizer.encode(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
    let expected = encode(&exact, &tokens, most)?.0;
    let models = settings.iter().map(|setting| configured(open()?, setting)).collect::<Result<Vec<_>, _>>()?;
    let mut seconds = vec![Vec::new(); models.len()];
    let mut outcomes = vec![(Vec::new(), Vec::new()); models.len()];
    for _ in 0..runs {
        for (at, model) in models.iter().enumerate() {
            let start = Instant::now();
            outcomes[at] = encode(model, &tokens, most)?;
            seconds[at].push(start.elapsed().as_secs_f64());
        }
    }
    let total: usize = tokens.iter().map(|text| text.ids.len()).sum();
    for ((setting, (vectors, left)), mut seconds) in settings.iter().zip(outcomes).zip(seconds) {
        seconds.sort_by(f64::total_cmp);
        let cosines = cosines(&vectors, &expected, exact.encoder.width());
        let lowest = cosines.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "{}",
            json!({
                "setting": setting, "texts": tokens.len(), "tokens": total, "runs": runs,
                "cosine_mean": cosines.iter().sum::<f64>() / cosines.len() as f64, "cosine_lowest": lowest,
                "median_s": seconds[seconds.len() / 2], "tokens_per_s": total as f64 / seconds[seconds.len() / 2],
                "tokens_left": left.iter().map(|&left| left as f64 / total as f64).collect::<Vec<_>>(),
            })
        );
    }
    Ok(())
}

/// Another mechanism or a reducer in a model.
fn configured(model: TextEncoder, setting: &Value) -> Result<TextEncoder, Box<dyn Error>> {
    let options = || setting["set"].as_object().into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?)));
    let mut model = model;
    if let Some(name) = setting["mechanism"].as_str() {
        let mut mechanism = Mechanism::by_name(name).ok_or("no such mechanism")?;
        options().try_for_each(|(key, value)| mechanism.set(key, value))?;
        model = model.with_attention(Attention::full().mechanism(mechanism));
    }
    if let Some(name) = setting["reducer"].as_str() {
        let mut reducer = Reducer::by_name(name).ok_or("no such reducer")?;
        options().try_for_each(|(key, value)| reducer.set(key, value))?;
        model = model.with_reducer(reducer);
    }
    Ok(model)
}

/// Normalised vectors, and how many tokens left each layer.
fn encode(model: &TextEncoder, tokens: &[Tokens], most: usize) -> Result<(Vec<f32>, Vec<usize>), Box<dyn Error>> {
    let (mut vectors, mut left) = (Vec::new(), Vec::new());
    for batch in batches(tokens, most) {
        let ids: Vec<&[u32]> = tokens[batch].iter().map(|text| &text.ids[..]).collect();
        let encoded = model.encoder.forward(&ids)?;
        left.resize(encoded.left.len(), 0);
        left.iter_mut().zip(&encoded.left).for_each(|(sum, left)| *sum += left);
        vectors.extend(pool(&encoded, Pooling::Mean, true).into_data().iter::<f32>());
    }
    Ok((vectors, left))
}

/// Of unit vectors, one by one.
fn cosines(a: &[f32], b: &[f32], width: usize) -> Vec<f64> {
    let dot = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum();
    a.chunks(width).zip(b.chunks(width)).map(dot).collect()
}
